#include "ps/gradient_sum.h"

#include <algorithm>

#include "common/status.h"
#include "kernels/compute.h"
#include "kernels/reduce.h"

namespace millrace::ps {

GradientSum::GradientSum(int64_t size, uint32_t units)
    : size_(static_cast<size_t>(size)),
      units_(units),
      memory_(std::make_unique_for_overwrite<unsigned char[]>(size_ * sizeof(int64_t))),
      is_in_(units, false) {}

absl::StatusOr<bool> GradientSum::Add(uint32_t unit, absl::string_view coded, const blocks::Coding& coding,
                                      uint64_t saturated) {
  absl::MutexLock lock(&mutex_);
  if (is_in_[unit]) return false;
  const bool first = in_ == 0, narrow = coding.bits == 16 && units_ <= blocks::kMost16;
  if (!first && narrow != narrow_) {
    return absl::InvalidArgumentError("another coding than of the units that are in");
  }
  MILLRACE_RETURN_IF_ERROR(narrow ? blocks::AddTo16(coded, coding, Sums<int32_t>(), first)
                                  : blocks::AddTo(coded, coding, Sums<int64_t>(), first));
  narrow_ = narrow;
  is_in_[unit] = true;
  ++in_;
  saturated_ += saturated;
  if (in_ == units_) squared_norm_ = SquaredNormLocked(coding);
  return true;
}

uint32_t GradientSum::missing() const {
  absl::MutexLock lock(&mutex_);
  return units_ - in_;
}

std::vector<uint32_t> GradientSum::Missing(size_t most) const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint32_t> missing;
  for (uint32_t unit = 0; unit < units_ && missing.size() < most; ++unit) {
    if (!is_in_[unit]) missing.push_back(unit);
  }
  return missing;
}

uint64_t GradientSum::saturated() const {
  absl::MutexLock lock(&mutex_);
  return saturated_;
}

uint64_t GradientSum::Decode(const blocks::Coding& coding, float* gradient) const {
  absl::MutexLock lock(&mutex_);
  return DecodeLocked(coding, gradient);
}

double GradientSum::SquaredNorm(const blocks::Coding& coding) const {
  absl::MutexLock lock(&mutex_);
  return in_ == units_ ? squared_norm_ : SquaredNormLocked(coding);
}

double GradientSum::SquaredNormLocked(const blocks::Coding& coding) const {
  const kernels::FlushDenormals flush;  // as where steps are computed
  thread_local std::vector<float> gradient;
  gradient.resize(std::max(gradient.size(), size_));
  DecodeLocked(coding, gradient.data());
  return kernels::SumSquaresInF64(gradient.data(), static_cast<int64_t>(size_));
}

uint64_t GradientSum::DecodeLocked(const blocks::Coding& coding, float* gradient) const {
  if (in_ == 0) {
    std::fill_n(gradient, size_, 0.0f);
    return 0;
  }
  return narrow_ ? blocks::DecodeSums(absl::Span<const int32_t>(Sums<int32_t>()), coding, gradient)
                 : blocks::DecodeSums(absl::Span<const int64_t>(Sums<int64_t>()), coding, gradient);
}

void GradientSum::Clear() {
  absl::MutexLock lock(&mutex_);
  is_in_.assign(units_, false);
  in_ = 0;
  saturated_ = 0;
}

}  // namespace millrace::ps
