// Decides from evaluated numbers alone when a phase ends and which evaluation is the best.
#pragma once

#include <cstdint>
#include <string>

#include "proto/millrace/v1/job.pb.h"

namespace millrace::coordinator {

// The rules of one phase. Feed it every evaluation in order of steps; a phase that returns to a checkpoint makes a new
// object and feeds it the evaluations up to that step.
class StopRules {
 public:
  explicit StopRules(const v1::StopSpec& spec);

  // Takes the held-out loss (finite, nats a token) at `step`. True if it is the lowest so far.
  bool Add(uint64_t step, double loss);

  // Why the phase ends after `version` steps: "max_steps", "patience", or empty: it goes on. Patience counts
  // evaluations in a row that were not better than the last better one by more than min_delta.
  std::string Reason(uint64_t version) const;

  bool evaluated() const { return evaluations_ > 0; }
  uint64_t best_step() const { return best_step_; }
  double best_loss() const { return best_loss_; }

 private:
  const uint64_t max_steps_;
  const uint32_t patience_;
  const double min_delta_;
  uint64_t evaluations_ = 0;
  uint64_t best_step_ = 0;
  double best_loss_ = 0;
  double reference_loss_ = 0;  // of the last evaluation that counted as better
  uint32_t without_better_ = 0;
};

}  // namespace millrace::coordinator
