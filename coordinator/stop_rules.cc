#include "coordinator/stop_rules.h"

namespace millrace::coordinator {

StopRules::StopRules(const v1::StopSpec& spec)
    : max_steps_(spec.max_steps()), patience_(spec.patience()), min_delta_(spec.min_delta()) {}

bool StopRules::Add(uint64_t step, double loss) {
  const bool first = evaluations_++ == 0;
  if (first || loss < reference_loss_ - min_delta_) {
    reference_loss_ = loss;
    without_better_ = 0;
  } else {
    ++without_better_;
  }
  const bool best = first || loss < best_loss_;
  if (best) {
    best_loss_ = loss;
    best_step_ = step;
  }
  return best;
}

std::string StopRules::Reason(uint64_t version) const {
  if (version >= max_steps_) return "max_steps";
  if (patience_ > 0 && without_better_ >= patience_) return "patience";
  return "";
}

}  // namespace millrace::coordinator
