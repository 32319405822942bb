#include "model/layers/rope.h"

#include "kernels/functions.h"

namespace millrace::model {

RopeTable::RopeTable(int64_t context, int64_t head_size, double theta) : half(head_size / 2) {
  cosines.resize(static_cast<size_t>(context * half));
  sines.resize(cosines.size());
  const double log_theta = kernels::LogInF64(theta);
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        kernels::ExpInF64(-log_theta * (2.0 * static_cast<double>(i) / static_cast<double>(head_size)));
    for (int64_t position = 0; position < context; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      const auto at = static_cast<size_t>(position * half + i);
      cosines[at] = static_cast<float>(kernels::CosInF64(angle));
      sines[at] = static_cast<float>(kernels::SinInF64(angle));
    }
  }
}

// (a, b) -> (a cos - b sin, b cos + a sin); back with the opposite angle.
void ApplyRope(const kernels::Compute& compute, const RopeTable& table, int64_t tokens, const uint32_t* positions,
               int64_t heads, float* x, int64_t stride, bool backward) {
  const int64_t half = table.half;
  compute.ParallelFor(tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t position = positions[token];
      const float* const cosine = table.cosines.data() + position * half;
      const float* const sine = table.sines.data() + position * half;
      for (int64_t head = 0; head < heads; ++head) {
        float* const a = x + token * stride + head * 2 * half;
        float* const b = a + half;
        for (int64_t i = 0; i < half; ++i) {
          const float s = backward ? -sine[i] : sine[i];
          const float turned_a = __builtin_fmaf(a[i], cosine[i], -(b[i] * s));
          const float turned_b = __builtin_fmaf(b[i], cosine[i], a[i] * s);
          a[i] = turned_a;
          b[i] = turned_b;
        }
      }
    }
  });
}

}  // namespace millrace::model
