// Starts child processes, signals them and waits for their end.
//
//   ChildProcess::Options options{.arguments = {"/usr/bin/sort", "names.txt"}, .log_file = "sort.log"};
//   MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<ChildProcess> child, ChildProcess::Start(options));
//   std::optional<Ending> ending = child->Wait(absl::Now() + absl::Seconds(5));
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace millrace {

// How a process ended: by itself with a status, or by a signal.
struct Ending {
  int status = 0;
  int signal = 0;

  bool well() const { return status == 0 && signal == 0; }
  // "exited with status 1", "was killed by signal 9 (Killed)".
  std::string Describe() const;
};

// One child. It runs in a process group of its own, so that a terminal's Ctrl-C reaches the parent alone, with every
// signal unblocked and no descriptor of the parent's but 0 (/dev/null), 1 and 2. Thread-safe.
class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> arguments;  // the program's path first
    std::string log_file;                // standard output and error are appended here; empty: the parent's
    // Ends with SIGTERM when the thread that started it ends (PR_SET_PDEATHSIG). Else it gets a session of its own.
    bool dies_with_parent = true;
    std::string directory;     // it starts there; empty: where the parent is
    uint64_t max_memory = 0;   // bytes of address space (RLIMIT_AS); 0: as the parent
    uint64_t max_written = 0;  // bytes of each file that it writes (RLIMIT_FSIZE); 0: as the parent
  };
  // An error if the program cannot be started at all, naming it.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const Options& options);
  // Kills the child if it dies with its parent and still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // Becomes readable for poll(2) when the child has ended.
  int descriptor() const { return descriptor_; }
  // Nothing happens once the child has ended and been waited for.
  void Signal(int signal);
  // Kills the child and what it has started in its process group, and waits for the child's end.
  Ending KillGroup();
  // Waits for the end until `deadline`; absent: it runs on. May be called again after the end.
  std::optional<Ending> Wait(absl::Time deadline);
  bool running() { return !Wait(absl::InfinitePast()).has_value(); }

 private:
  ChildProcess(pid_t pid, int descriptor, bool dies_with_parent)
      : pid_(pid), descriptor_(descriptor), dies_with_parent_(dies_with_parent) {}

  const pid_t pid_;
  const int descriptor_;
  const bool dies_with_parent_;
  absl::Mutex mutex_;
  std::optional<Ending> ending_ ABSL_GUARDED_BY(mutex_);
};

// The program that is running, for starting it again.
absl::StatusOr<std::string> OwnProgram();

}  // namespace millrace
