// Pairs of bfloat16 by VCVTNE2PS2BF16: rounded to nearest even, denormals to zero, whatever MXCSR says.
//
// For files compiled for AVX-512 with bf16; nothing here may be linked across files (all is in an unnamed namespace).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace millrace::kernels {
namespace {  // NOLINT(google-build-namespaces)

constexpr int kLanes = 16;

// The first `count` of 16.
inline __mmask16 First(int64_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xFFFF : count <= 0 ? 0 : (1 << count) - 1);
}

// 32 bfloat16: those of `low` first.
inline __m512i Convert(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// 16 pairs, from two rows that lie apart.
inline __m512i ConvertRows(__m512 even, __m512 odd) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, Convert(even, odd));
}

}  // namespace
}  // namespace millrace::kernels
