#include "kernels/pack.h"

#include <immintrin.h>

#include <algorithm>

#include "kernels/bfloat16.h"
#include "kernels/fetch_ahead.h"

namespace millrace::kernels {
namespace {

// RoundToBf16 of eight, widened. Requires that denormals are flushed.
__m256i RoundedEight(__m256i bits) {
  // Times one: denormals are flushed, and NaN quieted. The compiler is not to know that it is one.
  __m256 one = _mm256_set1_ps(1);
  __asm__("" : "+x"(one));
  const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(bits), one);
  const __m256i flushed = _mm256_castps_si256(value);
  const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(flushed, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(flushed, _mm256_set1_epi32(0x7FFF)), lowest);
  const __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const __m256i result = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), value, nan));
  return _mm256_and_si256(result, _mm256_set1_epi32(static_cast<int>(0xFFFF0000)));
}

// All bits set in the first `count` of eight.
__m256i FirstOfEight(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::clamp<int64_t>(count, 0, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Inlined, or the rows would go through memory.
inline __attribute__((always_inline)) void TransposeEight(__m256 (&rows)[8]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    quads[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
    quads[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xEE);
    quads[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
    quads[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// Eight units of a line whose elements lie one after another.
template <Packing kPacking>
__m256 EightUnits(const float* from) {
  if constexpr (kPacking == Packing::kPlain) {
    return _mm256_loadu_ps(from);
  } else {
    const __m256i rounded = RoundedEight(_mm256_castps_si256(_mm256_loadu_ps(from)));
    return _mm256_permute_ps(_mm256_castsi256_ps(rounded), 0b10110001);  // the odd of each pair first
  }
}

// One unit at element p of a line of k; what lies behind the end is zero.
template <Packing kPacking>
float OneUnit(const float* line, int64_t k_stride, int64_t p, int64_t k) {
  if constexpr (kPacking == Packing::kPlain) {
    return line[p * k_stride];
  } else {
    return (p ^ 1) < k ? WidenBf16(RoundToBf16(line[(p ^ 1) * k_stride])) : 0.0f;
  }
}

template <Packing kPacking>
void PackPanel(const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width, int64_t k,
               float* panel) {
  const int64_t units = UnitsOf(kPacking, k);
  if (line_stride == 1) {
    // Lines side by side: unit after unit, from whole registers of lines.
    for (int64_t p = 0; p < k; ++p) {
      const float* const from = source + p * k_stride;
      float* const to = panel + (kPacking == Packing::kPlain ? p : p ^ 1) * width;
      for (int64_t line = 0; line < width; line += 8) {
        if (line % kCacheLine == 0) _mm_prefetch(from + kRowsAhead * k_stride + line, _MM_HINT_T1);
        const __m256 value = lines - line >= 8 ? _mm256_loadu_ps(from + line)
                                               : _mm256_maskload_ps(from + line, FirstOfEight(lines - line));
        _mm256_store_ps(to + line, kPacking == Packing::kPlain
                                       ? value
                                       : _mm256_castsi256_ps(RoundedEight(_mm256_castps_si256(value))));
      }
    }
    if (units > k) std::fill_n(panel + (k - 1) * width, width, 0.0f);  // an odd k's second half comes first
    return;
  }
  // Elements of a line side by side: eight units of eight lines at a time.
  for (int64_t line = 0; line < width; line += 8) {
    const int64_t present = std::clamp<int64_t>(lines - line, 0, 8);
    const float* const first = source + line * line_stride;
    int64_t unit = 0;
    for (; unit + 8 <= k; unit += 8) {
      __m256 rows[8];
      if (unit % kCacheLine == 0) {
#pragma GCC unroll 8
        for (int64_t j = 0; j < 8; ++j) _mm_prefetch(first + (j + kRowsAhead) * line_stride + unit, _MM_HINT_T1);
      }
#pragma GCC unroll 8
      for (int64_t j = 0; j < 8; ++j) {
        rows[j] = j < present ? EightUnits<kPacking>(first + j * line_stride + unit) : _mm256_setzero_ps();
      }
      TransposeEight(rows);
      float* const to = panel + unit * width + line;
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) _mm256_store_ps(to + i * width, rows[i]);
    }
    for (; unit < units; ++unit) {
      for (int64_t j = 0; j < 8; ++j) {
        panel[unit * width + line + j] =
            j < present ? OneUnit<kPacking>(first + j * line_stride, k_stride, unit, k) : 0.0f;
      }
    }
  }
}

template <Packing kPacking>
void PackRows(const float* source, int64_t row_stride, int64_t rows, int64_t k, float* to, int64_t to_stride) {
  const int64_t units = UnitsOf(kPacking, k);
  for (int64_t row = 0; row < rows; ++row, source += row_stride, to += to_stride) {
    int64_t unit = 0;
    for (; unit + 8 <= k; unit += 8) {
      _mm256_storeu_ps(to + unit, EightUnits<kPacking>(source + unit));
    }
    for (; unit < units; ++unit) to[unit] = OneUnit<kPacking>(source, 1, unit, k);
  }
}

}  // namespace

const Packer kPlainPacker = {Packing::kPlain, &PackPanel<Packing::kPlain>, &PackRows<Packing::kPlain>};
const Packer kWidenedPacker = {Packing::kWidened, &PackPanel<Packing::kWidened>, &PackRows<Packing::kWidened>};

}  // namespace millrace::kernels
