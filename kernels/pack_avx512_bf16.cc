// Packs pairs of bfloat16. Compiled for AVX-512 with bf16; see tile_avx512.cc.
#include "kernels/pack_avx512_bf16.h"

#include <immintrin.h>

#include "kernels/compute.h"
#include "kernels/fetch_ahead.h"
#include "kernels/pack.h"

namespace millrace::kernels {
namespace {

__m512 LoadFirst(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(First(count), from); }

// 16 units of a line of which `left` elements are left.
__m512i Units(const float* from, int64_t left) {
  return left >= 2 * kLanes ? Convert(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes))
                            : Convert(LoadFirst(from, left), LoadFirst(from + kLanes, left - kLanes));
}

// Inlined, or the rows would go through memory.
inline __attribute__((always_inline)) void Transpose(__m512i (&rows)[16]) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quads[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
    quads[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
    quads[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    quads[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
  }
  // Quarter q of quads[4 r + i] holds column 4 q + i of rows 4 r … 4 r + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(quads[i], quads[4 + i], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(quads[i], quads[4 + i], 0xDD);
    const __m512i even_high = _mm512_shuffle_i32x4(quads[8 + i], quads[12 + i], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(quads[8 + i], quads[12 + i], 0xDD);
    rows[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[4 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[8 + i] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
    rows[12 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
  }
}

// Lines side by side: two elements of all lines, interleaved. Row after row, for the sake of the prefetcher. kFull: all
// lines are there, 16 or 32 of them.
template <bool kFull>
void PackSideBySide(const float* source, int64_t k_stride, int64_t lines, int64_t width, int64_t k, float* panel) {
  const auto load = [lines](const float* row, int64_t line) {
    return kFull ? _mm512_loadu_ps(row + line) : LoadFirst(row + line, lines - line);
  };
  const auto pack = [&](const float* even, const float* odd) {
    for (int64_t line = 0; line < width; line += kLanes) {
      _mm_prefetch(even + kRowsAhead * k_stride + line, _MM_HINT_T1);
      _mm_prefetch(even + (kRowsAhead + 1) * k_stride + line, _MM_HINT_T1);
      const __m512i pairs = ConvertRows(load(even, line), odd != nullptr ? load(odd, line) : _mm512_setzero_ps());
      if (kFull) {
        _mm512_storeu_si512(panel + line, pairs);
      } else {
        _mm512_mask_storeu_epi32(panel + line, First(width - line), pairs);
      }
    }
    panel += width;
  };
  for (; k >= 2; k -= 2, source += 2 * k_stride) pack(source, source + k_stride);
  if (k > 0) pack(source, nullptr);
}

// Elements of a line side by side: 16 units of 16 lines. kFull: all of them are there.
template <bool kFull>
void PackSquare(const float* source, int64_t line_stride, int64_t lines, int64_t width, int64_t k, float* panel,
                int64_t stride) {
  __m512i rows[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    const float* const line = source + j * line_stride;
    _mm_prefetch(line + kRowsAhead * line_stride, _MM_HINT_T1);
    _mm_prefetch(line + kRowsAhead * line_stride + kLanes, _MM_HINT_T1);
    rows[j] = kFull || j < lines ? Units(line, kFull ? 2 * kLanes : k) : _mm512_setzero_si512();
  }
  Transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    float* const to = panel + i * stride;
    if (kFull) {
      _mm512_storeu_si512(to, rows[i]);
    } else if (2 * i < k) {
      _mm512_mask_storeu_epi32(to, First(width), rows[i]);
    }
  }
}

void PackPanel(const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width, int64_t k,
               float* panel) {
  if (line_stride == 1) {
    const bool full = lines == width && width % kLanes == 0;
    (full ? &PackSideBySide<true> : &PackSideBySide<false>)(source, k_stride, lines, width, k, panel);
    return;
  }
  for (int64_t line = 0; line < width; line += kLanes) {
    const float* const first = source + line * line_stride;
    for (int64_t p = 0; p < k; p += 2 * kLanes) {
      const bool full = lines - line >= kLanes && k - p >= 2 * kLanes;
      (full ? &PackSquare<true> : &PackSquare<false>)(first + p, line_stride, lines - line, width - line, k - p,
                                                      panel + p / 2 * width + line, width);
    }
  }
}

void PackRows(const float* source, int64_t row_stride, int64_t rows, int64_t k, float* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* const from = source + row * row_stride;
    float* const row_to = to + row * to_stride;
    for (int64_t p = 0; p < k; p += 2 * kLanes) {
      _mm_prefetch(from + kRowsAhead * row_stride + p, _MM_HINT_T1);
      _mm_prefetch(from + kRowsAhead * row_stride + p + kLanes, _MM_HINT_T1);
      _mm512_storeu_si512(row_to + p / 2, Units(from + p, k - p));
    }
  }
}

}  // namespace

const Packer kPairsPacker = {Packing::kPairs, &PackPanel, &PackRows};

bool Bf16ConversionIsAsDefined(uint16_t (*round)(float)) {
  const FlushDenormals flush;
  unsigned long long state = 20261124;
  // Random patterns of 32 bits, and every upper half with a few lower ones about the ties.
  static constexpr unsigned kLower[] = {0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
  for (unsigned upper = 0; upper < 0x10000; upper += kLanes) {
    for (int i = 0; i < 8; ++i) {
      alignas(64) unsigned bits[32];
      alignas(64) unsigned short converted[32];
      for (int j = 0; j < 32; ++j) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const auto random = static_cast<unsigned>(state >> 32);
        bits[j] = j >= kLanes ? random : (upper + static_cast<unsigned>(j)) << 16 | (i < 6 ? kLower[i] : random >> 16);
      }
      _mm512_store_si512(converted, Convert(_mm512_castsi512_ps(_mm512_load_si512(bits)),
                                            _mm512_castsi512_ps(_mm512_load_si512(bits + kLanes))));
      for (int j = 0; j < 32; ++j) {
        float value;
        __builtin_memcpy(&value, &bits[j], sizeof(value));
        if (converted[j] != round(value)) return false;
      }
    }
  }
  return true;
}

}  // namespace millrace::kernels
