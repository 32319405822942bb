// Shows a job to a person: its events as they come, its end, its checkpoints.
#pragma once

#include <string>

#include "common/progress.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::cli {

// Own thread only.
class JobView {
 public:
  explicit JobView(ProgressLine* line) : line_(line) {}

  // Steps move the line; everything else stays above it.
  void Show(const v1::JobEvent& event);

 private:
  ProgressLine* const line_;
  double held_out_ = 0;  // the last evaluation's loss; 0: none yet
};

// "running", "succeeded" ….
std::string StateName(v1::Job::State state);
// Whether nothing more happens unless somebody asks for it.
bool HasEnded(v1::Job::State state);

// The job's end in a few lines: why it ended, its held-out loss, its best checkpoint.
std::string Summary(const v1::Job& job);
// Commands to try with the model in a checkpoint folder; `program` as the user typed it.
std::string NextCommands(const std::string& program, const std::string& family, const std::string& checkpoint);

}  // namespace millrace::cli
