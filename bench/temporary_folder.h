// Makes a folder that goes with its object.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace millrace::bench {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    if (mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (good()) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  bool good() const { return !path_.empty(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/millrace-bench-XXXXXX";
};

}  // namespace millrace::bench
