// Bounds how fast lines are written of what strangers can cause any number of.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace millrace {

// So many at once, and so many more a second. Not thread-safe.
class LineBudget {
 public:
  LineBudget(double at_once, double a_second) : at_once_(at_once), a_second_(a_second), left_(at_once) {}

  // Whether a line may be written at `now`; if not, it is left out.
  bool Take(absl::Time now) {
    if (refilled_ < now) {
      left_ = std::min(at_once_, left_ + absl::ToDoubleSeconds(now - refilled_) * a_second_);
      refilled_ = now;
    }
    if (left_ < 1) {
      ++left_out_;
      return false;
    }
    left_ -= 1;
    return true;
  }
  // Lines left out since they were last told of.
  uint64_t left_out() const { return left_out_; }
  void Told() { left_out_ = 0; }

 private:
  const double at_once_, a_second_;
  double left_;
  absl::Time refilled_ = absl::InfinitePast();
  uint64_t left_out_ = 0;
};

}  // namespace millrace
