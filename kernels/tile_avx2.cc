// 6 x 16: 12 accumulators, 2 registers of B, 2 of A.
#include <immintrin.h>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 6;

void ComputeTile(int64_t k, const void* a_panel, const void* b_panel, float* c, int64_t c_stride, bool zero) {
  const auto* a = static_cast<const float*>(a_panel);
  const auto* b = static_cast<const float*>(b_panel);
  __m256 c0[kRows], c1[kRows];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    c0[i] = zero ? _mm256_setzero_ps() : _mm256_loadu_ps(c + i * c_stride);
    c1[i] = zero ? _mm256_setzero_ps() : _mm256_loadu_ps(c + i * c_stride + 8);
  }
  for (int64_t p = 0; p < k; ++p) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 ai = _mm256_broadcast_ss(a + i);
      c0[i] = _mm256_fmadd_ps(ai, b0, c0[i]);
      c1[i] = _mm256_fmadd_ps(ai, b1, c1[i]);
    }
    a += kRows;
    b += 16;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    _mm256_storeu_ps(c + i * c_stride, c0[i]);
    _mm256_storeu_ps(c + i * c_stride + 8, c1[i]);
  }
}

}  // namespace

const Tile kAvx2Tile = {kRows, 16, &ComputeTile};

}  // namespace millrace::kernels
