#include "optim/schedule.h"

#include <algorithm>

#include "kernels/functions.h"

namespace millrace::optim {

double ScheduleFactor(const v1::OptimizerSpec& spec, uint64_t step, uint64_t max_steps) {
  constexpr double kPi = 3.14159265358979323846;
  const auto done = static_cast<double>(step - 1);
  const auto warmup = static_cast<double>(spec.warmup_steps());
  if (done < warmup) return (done + 1) / warmup;
  const auto end = static_cast<double>(spec.decay_steps() > 0 ? spec.decay_steps() : max_steps);
  const double least = spec.min_lr_ratio();
  // The share of the way from `begin` to the end, and the factor where a share is left of the fall.
  const auto along = [done, end](double begin) {
    return end > begin ? std::clamp((done - begin) / (end - begin), 0.0, 1.0) : 1.0;
  };
  const auto left = [least](double share) { return least + (1.0 - least) * share; };
  if (spec.schedule() == "constant") return 1.0;
  if (spec.schedule() == "linear") return left(1.0 - along(warmup));
  if (spec.schedule() == "wsd") {
    const double begin = std::max(warmup, end * (1.0 - spec.decay_fraction()));
    return done < begin ? 1.0 : left(1.0 - along(begin));
  }
  return left(0.5 * (1.0 + kernels::CosInF64(kPi * along(warmup))));
}

}  // namespace millrace::optim
