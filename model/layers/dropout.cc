#include "model/layers/dropout.h"

#include <algorithm>

namespace millrace::model {

void ApplyDropout(const Dropout& dropout, uint64_t first, int64_t n, const float* x, float* y) {
  const float scale = 1.0f / (1.0f - dropout.rate);
  for (int64_t i = 0; i < n; i += 4) {
    const std::array<uint32_t, 4> words = dropout.key(dropout.site, first / 4 + static_cast<uint64_t>(i) / 4);
    for (int64_t j = i; j < std::min(i + 4, n); ++j) {
      y[j] = UniformFloat(words[static_cast<size_t>(j - i)]) < dropout.rate ? 0.0f : x[j] * scale;
    }
  }
}

void ApplyDropout(const kernels::Compute& compute, const Dropout& dropout, int64_t n, float* x) {
  if (dropout.rate == 0.0f) return;
  constexpr int64_t kPiece = 1024;
  compute.ParallelFor((n + kPiece - 1) / kPiece, 4, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * kPiece, to = std::min(n, end * kPiece);
    ApplyDropout(dropout, static_cast<uint64_t>(from), to - from, x + from, x + from);
  });
}

}  // namespace millrace::model
