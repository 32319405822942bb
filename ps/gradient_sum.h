// Adds up the gradient of one block over the work units of a step: exactly, in any order, each unit once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "blocks/fixed_point.h"

namespace millrace::ps {

// So many contributions of the coding at the start cannot overflow a sum.
inline constexpr uint32_t kMaxUnits = 1 << 19;

// Thread-safe.
class GradientSum {
 public:
  // Of `size` values, over `units` units. Requires units <= kMaxUnits.
  GradientSum(int64_t size, uint32_t units);

  // Adds what `unit` contributes; false, and nothing changes, if it has been added already. INVALID_ARGUMENT, and
  // nothing changes, for values that are not so many or lie beyond the coding's limit. Requires unit < units.
  absl::StatusOr<bool> Add(uint32_t unit, absl::string_view coded, const blocks::Coding& coding, uint64_t saturated);

  // Units that are not in: how many, and which, ascending, `most` of them at most.
  uint32_t missing() const;
  std::vector<uint32_t> Missing(size_t most) const;
  // Values that did not fit their coding, over the units that are in.
  uint64_t saturated() const;

  // Writes the sum's values to `gradient` and returns their largest magnitude, in units of the coding.
  uint64_t Decode(const blocks::Coding& coding, float* gradient) const;

  // The sum of the values' squares. Computed when the last unit comes, which is before it is asked for: a step waits
  // for it.
  double SquaredNorm(const blocks::Coding& coding) const;

  // Back to the start of a step.
  void Clear();

 private:
  template <typename Sum>
  absl::Span<Sum> Sums() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return {reinterpret_cast<Sum*>(memory_.get()), size_};
  }
  uint64_t DecodeLocked(const blocks::Coding& coding, float* gradient) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  double SquaredNormLocked(const blocks::Coding& coding) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t size_;
  const uint32_t units_;
  mutable absl::Mutex mutex_;
  // Of the units that are in; anything if none is. Sums of 16-bit contributions are int32_t where so many cannot
  // overflow them, others int64_t, for which there is room.
  const std::unique_ptr<unsigned char[]> memory_ ABSL_PT_GUARDED_BY(mutex_);
  bool narrow_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<bool> is_in_ ABSL_GUARDED_BY(mutex_);  // by unit
  uint32_t in_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t saturated_ ABSL_GUARDED_BY(mutex_) = 0;
  double squared_norm_ ABSL_GUARDED_BY(mutex_) = 0;  // once all units are in
};

}  // namespace millrace::ps
