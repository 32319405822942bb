// 14 x 32: 28 accumulators, 2 registers of B, A from memory.
//
// Compiled for AVX-512: nothing here may be an inline function that another file has too, or the linker could put this
// file's version into code for lesser processors.
#include <immintrin.h>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 14;

void ComputeTile(int64_t k, const void* a_panel, const void* b_panel, float* c, int64_t c_stride, bool zero) {
  const auto* a = static_cast<const float*>(a_panel);
  const auto* b = static_cast<const float*>(b_panel);
  __m512 c0[kRows], c1[kRows];
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    c0[i] = zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * c_stride);
    c1[i] = zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * c_stride + 16);
  }
  for (int64_t p = 0; p < k; ++p) {
    const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const __m512 ai = _mm512_set1_ps(a[i]);
      c0[i] = _mm512_fmadd_ps(ai, b0, c0[i]);
      c1[i] = _mm512_fmadd_ps(ai, b1, c1[i]);
    }
    a += kRows;
    b += 32;
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    _mm512_storeu_ps(c + i * c_stride, c0[i]);
    _mm512_storeu_ps(c + i * c_stride + 16, c1[i]);
  }
}

}  // namespace

const Tile kAvx512Tile = {kRows, 32, &ComputeTile};

}  // namespace millrace::kernels
