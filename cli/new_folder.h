// A folder that is being filled: it goes unless it is moved to where it is meant to be.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/stop_signal.h"

namespace millrace::cli {

// One at a time, made in main's thread before others start that should end by signals: while it lives, SIGINT and
// SIGTERM remove it before they end the process.
class NewFolder {
 public:
  // Makes the folder PREFIX and a number that is free, with the permissions of `mode` less the umask.
  static absl::StatusOr<std::unique_ptr<NewFolder>> Make(const std::string& prefix, mode_t mode);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const std::string& path() const { return path_; }
  // Renames it, durably. ALREADY_EXISTS if something is there.
  absl::Status MoveTo(const std::string& target);

 private:
  NewFolder();

  std::string path_;  // empty: not made yet, or moved
  sigset_t signals_before_;
  std::unique_ptr<StopSignal> stop_;
};

}  // namespace millrace::cli
