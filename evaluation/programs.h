// Lets a program say whether a generated text is right.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace millrace::evaluation {

struct Trial {
  std::vector<std::string> arguments;  // the program's path first
  std::string file;                    // where the source is, in the program's own folder
  std::string source;
  absl::Duration time_limit;
  uint64_t max_memory = 0;  // bytes
};

struct TrialOutcome {
  bool passed = false;
  std::string ending;  // "exited with status 1", "was killed after 10 s"
  std::string output;  // what it printed, at most its first 4096 bytes
};

// Writes the source into a temporary folder, runs the program there, without input, and removes the folder. It passes
// if it ends with status 0 within its time; then or at its time its process group is killed. It runs with the rights of
// whoever calls: the limits are against accidents, not against malice.
// An error if the folder cannot be made or the program cannot be started.
absl::StatusOr<TrialOutcome> RunTrial(const Trial& trial);

}  // namespace millrace::evaluation
