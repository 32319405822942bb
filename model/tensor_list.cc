#include "model/tensor_list.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/philox.h"
#include "kernels/functions.h"

namespace millrace::model {
namespace {

constexpr int64_t kAlignment = 16;                // floats
constexpr uint64_t kStartPurpose = 0x5354415254;  // "START"

// In (0, 1], so that its logarithm is finite.
double Positive(uint32_t word) { return (static_cast<double>(word) + 1.0) * 0x1p-32; }

}  // namespace

int TensorList::Add(TensorSpec spec) {
  spec.size = 1;
  for (const int64_t extent : spec.shape) spec.size *= extent;
  spec.offset = floats_;
  floats_ += (spec.size + kAlignment - 1) / kAlignment * kAlignment;
  parameters_ += spec.size;
  tensors_.push_back(std::move(spec));
  return size() - 1;
}

int TensorList::Find(absl::string_view name) const {
  for (int i = 0; i < size(); ++i) {
    if (tensors_[static_cast<size_t>(i)].name == name) return i;
  }
  return -1;
}

void StartValues(const TensorSpec& spec, int index, uint64_t seed, int64_t begin, absl::Span<float> values) {
  if (spec.start == Start::kZeros || spec.start == Start::kOnes) {
    std::fill(values.begin(), values.end(), spec.start == Start::kOnes ? 1.0f : 0.0f);
    return;
  }
  constexpr double kTwoPi = 6.28318530717958647693;
  const Philox philox = Philox(seed).Derive(kStartPurpose);
  const auto deviation = static_cast<double>(spec.start_size);
  for (size_t i = 0; i < values.size(); i += 4) {
    const std::array<uint32_t, 4> words =
        philox(static_cast<uint64_t>(index), static_cast<uint64_t>(begin) / 4 + i / 4);
    if (spec.start == Start::kUniform) {
      for (size_t at = i; at < std::min(i + 4, values.size()); ++at) {
        values[at] = static_cast<float>(deviation * (2 * Positive(words[at - i]) - 1));
      }
      continue;
    }
    for (size_t pair = 0; pair < 2; ++pair) {
      const double radius = std::sqrt(-2.0 * kernels::LogInF64(Positive(words[2 * pair])));
      const double angle = kTwoPi * Positive(words[2 * pair + 1]);
      const size_t at = i + 2 * pair;
      if (at < values.size()) values[at] = static_cast<float>(deviation * (radius * kernels::CosInF64(angle)));
      if (at + 1 < values.size()) values[at + 1] = static_cast<float>(deviation * (radius * kernels::SinInF64(angle)));
    }
  }
}

void StartWeights(const TensorList& tensors, uint64_t seed, float* weights) {
  for (int i = 0; i < tensors.size(); ++i) {
    const TensorSpec& tensor = tensors[i];
    StartValues(tensor, i, seed, 0, absl::MakeSpan(weights + tensor.offset, static_cast<size_t>(tensor.size)));
  }
}

}  // namespace millrace::model
