// Runs the real command line in a folder of its own.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace::testing {

inline std::string Quoted(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

inline std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline void WriteAll(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A folder that is removed at the end, and the binary that is run.
class CommandLine {
 public:
  explicit CommandLine(std::string millrace) : millrace_(std::move(millrace)) {
    char pattern[] = "/tmp/millrace-commands-XXXXXX";
    if (mkdtemp(pattern) != nullptr) work_ = pattern;
  }
  ~CommandLine() {
    std::error_code ignored;
    std::filesystem::remove_all(work_, ignored);
  }

  const std::filesystem::path& work() const { return work_; }

  Outcome Run(const std::string& arguments) const {
    const std::string out = (work_ / "out").string(), err = (work_ / "err").string();
    const std::string command =
        Quoted(millrace_) + " " + arguments + " </dev/null >" + Quoted(out) + " 2>" + Quoted(err);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, ReadAll(out), ReadAll(err)};
  }

  nlohmann::json RunJson(const std::string& arguments) const {
    const Outcome outcome = Run(arguments + " --json");
    EXPECT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
    nlohmann::json json = nlohmann::json::parse(outcome.out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << arguments << "\n" << outcome.out;
    return json;
  }

 private:
  const std::string millrace_;
  std::filesystem::path work_;
};

}  // namespace millrace::testing
