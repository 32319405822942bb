// The processes that a measurement starts, and what they take.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/process.h"

namespace millrace::bench {

// A folder that goes with its object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/millrace-bench-XXXXXX";
};

// One role of a cluster. Killed with its object.
struct Role {
  std::unique_ptr<ChildProcess> process;
  std::string address;  // where it serves
};
// Starts `command`, a role and its flags. Leaves NAME.log, and NAME.address of one that `serves`, in `folder`.
absl::StatusOr<Role> StartRole(std::vector<std::string> command, const std::string& name, const std::string& folder,
                               bool serves);

// The most memory that a process had resident; 0 if it is not known.
double PeakMegabytes(pid_t pid);

}  // namespace millrace::bench
