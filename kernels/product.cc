// The blocking is Goto's: panels of B in the outer cache, a block of A in the inner one, a tile in registers. Chains go
// on across blocks of k by loading what was stored.
#include "kernels/product.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kernels/scratch.h"
#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kBlockK = 256;   // even
constexpr int64_t kBlockM = 168;   // a multiple of every tile's rows: 4, 6, 14
constexpr int64_t kBlockN = 2048;  // a multiple of every tile's columns
constexpr size_t kAlignment = 64;
// Products below this many multiply-adds stay on one thread.
constexpr int64_t kParallelWork = 1 << 18;

thread_local Scratch block_of_a;
thread_local Scratch panels_of_b;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The upper half is the rounded value.
uint32_t RoundedBits(float value) {
  const uint32_t bits = Bits(value);
  const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  const uint32_t denormal = (bits & 0x7F800000) == 0 ? 0xFFFFFFFF : 0;
  const uint32_t nan = (bits & 0x7FFFFFFF) > 0x7F800000 ? 0xFFFFFFFF : 0;
  const uint32_t result = (rounded & ~denormal & ~nan) | (bits & 0x80000000 & denormal) | ((bits | 0x400000) & nan);
  return result & 0xFFFF0000;
}

// How a panel holds its elements.
enum class Packing {
  kPlain,    // f32, in order
  kWidened,  // f32 that were rounded to bfloat16, the odd of each pair first
  kPairs,    // two bfloat16 in 32 bits
};

// RoundedBits of eight.
__m256i RoundedEight(__m256i bits) {
  const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), lowest);
  const __m256i denormal =
      _mm256_cmpeq_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7F800000)), _mm256_setzero_si256());
  const __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0x80000000)));
  const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)),
                                         _mm256_set1_epi32(0x7F800000));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i result = _mm256_blendv_epi8(_mm256_blendv_epi8(rounded, sign, denormal), quiet, nan);
  return _mm256_and_si256(result, _mm256_set1_epi32(static_cast<int>(0xFFFF0000)));
}

// All bits set in the first `count` of eight.
__m256i FirstOfEight(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::clamp<int64_t>(count, 0, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

void TransposeEight(__m256 (&rows)[8]) {
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

// 32 bits of a packed line each: an element, or a pair of them.
constexpr int64_t ElementsOfUnit(Packing packing) { return packing == Packing::kPairs ? 2 : 1; }

// Eight units of a line whose elements lie one after another.
template <Packing kPacking>
__m256 EightUnits(const float* from) {
  if constexpr (kPacking == Packing::kPlain) {
    return _mm256_loadu_ps(from);
  } else if constexpr (kPacking == Packing::kWidened) {
    const __m256i rounded = RoundedEight(_mm256_castps_si256(_mm256_loadu_ps(from)));
    return _mm256_permute_ps(_mm256_castsi256_ps(rounded), 0b10110001);  // the odd of each pair first
  } else {
    const __m256 low = _mm256_castsi256_ps(RoundedEight(_mm256_castps_si256(_mm256_loadu_ps(from))));
    const __m256 high = _mm256_castsi256_ps(RoundedEight(_mm256_castps_si256(_mm256_loadu_ps(from + 8))));
    const __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
    const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xDD));
    // Shuffling works within halves of the register: put the quarters in order.
    return _mm256_castsi256_ps(
        _mm256_permute4x64_epi64(_mm256_or_si256(_mm256_srli_epi32(even, 16), odd), 0b11011000));
  }
}

// One unit at element p of a line of k; what lies behind the end is zero.
template <Packing kPacking>
float OneUnit(const float* line, int64_t k_stride, int64_t p, int64_t k) {
  const auto rounded = [&](int64_t at) { return at < k ? RoundedBits(line[at * k_stride]) : 0; };
  if constexpr (kPacking == Packing::kPlain) {
    return line[p * k_stride];
  } else if constexpr (kPacking == Packing::kWidened) {
    return FromBits(rounded(p ^ 1));
  } else {
    return FromBits(rounded(p) >> 16 | rounded(p + 1));
  }
}

// Packs `width` lines (rows of A or columns of B; `lines` of them are there, the rest zeros) over k elements from
// source: line l, element p is source[l * line_stride + p * k_stride], one of the strides being 1. Odd k is filled up
// with a zero if not kPlain.
template <Packing kPacking>
void PackPanel(const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width, int64_t k,
               float* panel) {
  constexpr int64_t kElements = ElementsOfUnit(kPacking);
  const int64_t units = kPacking == Packing::kPlain     ? k
                        : kPacking == Packing::kWidened ? RoundUp(k, 2)
                                                        : (k + 1) / 2;
  if (line_stride == 1) {
    // Lines side by side: unit after unit, from whole registers of lines.
    const int64_t even = k / 2 * 2;
    for (int64_t line = 0; line < width; line += 8) {
      const __m256i stored = FirstOfEight(width - line), present = FirstOfEight(lines - line);
      const bool all = width - line >= 8 && lines - line >= 8;
      const auto load = [&](int64_t p) {
        const float* const from = source + p * k_stride + line;
        return all ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, present);
      };
      const auto store = [&](int64_t unit, __m256 value) {
        float* const to = panel + unit * width + line;
        if (all) {
          _mm256_storeu_ps(to, value);
        } else {
          _mm256_maskstore_ps(to, stored, value);
        }
      };
      const auto rounded = [&](int64_t p) { return RoundedEight(_mm256_castps_si256(load(p))); };
      if constexpr (kPacking == Packing::kPlain) {
        for (int64_t p = 0; p < k; ++p) store(p, load(p));
      } else if constexpr (kPacking == Packing::kWidened) {
        for (int64_t p = 0; p < even; ++p) store(p ^ 1, _mm256_castsi256_ps(rounded(p)));
        if (k % 2 != 0) {
          store(even, _mm256_setzero_ps());
          store(even + 1, _mm256_castsi256_ps(rounded(even)));
        }
      } else {
        for (int64_t p = 0; p < even; p += 2) {
          store(p / 2, _mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(rounded(p), 16), rounded(p + 1))));
        }
        if (k % 2 != 0) store(k / 2, _mm256_castsi256_ps(_mm256_srli_epi32(rounded(even), 16)));
      }
    }
    return;
  }
  // Elements of a line side by side: eight units of eight lines at a time.
  for (int64_t line = 0; line < width; line += 8) {
    const __m256i stored = FirstOfEight(width - line);
    const int64_t present = std::clamp<int64_t>(lines - line, 0, 8);
    const float* const first = source + line * line_stride;
    int64_t unit = 0;
    for (; (unit + 8) * kElements <= k; unit += 8) {
      __m256 rows[8];
#pragma GCC unroll 8
      for (int64_t j = 0; j < 8; ++j) {
        rows[j] = j < present ? EightUnits<kPacking>(first + j * line_stride + unit * kElements) : _mm256_setzero_ps();
      }
      TransposeEight(rows);
      float* const to = panel + unit * width + line;
      if (width - line >= 8) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < 8; ++i) _mm256_storeu_ps(to + i * width, rows[i]);
      } else {
#pragma GCC unroll 8
        for (int64_t i = 0; i < 8; ++i) _mm256_maskstore_ps(to + i * width, stored, rows[i]);
      }
    }
    for (; unit < units; ++unit) {
      for (int64_t j = 0; j < std::min<int64_t>(8, width - line); ++j) {
        panel[unit * width + line + j] =
            j < present ? OneUnit<kPacking>(first + j * line_stride, k_stride, unit * kElements, k) : 0.0f;
      }
    }
  }
}

void Pack(Packing packing, const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width,
          int64_t k, float* panel) {
  switch (packing) {
    case Packing::kPlain:
      return PackPanel<Packing::kPlain>(source, line_stride, k_stride, lines, width, k, panel);
    case Packing::kWidened:
      return PackPanel<Packing::kWidened>(source, line_stride, k_stride, lines, width, k, panel);
    case Packing::kPairs:
      return PackPanel<Packing::kPairs>(source, line_stride, k_stride, lines, width, k, panel);
  }
}

void AddBias(const Product& product, int64_t row_begin, int64_t row_end) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    float* const row = product.c + i * product.c_stride;
    for (int64_t j = 0; j < product.n; ++j) row[j] += product.bias[j];
  }
}

// A block of k of a block of columns: everything that the threads share.
struct Block {
  const Product& product;
  const Tile& tile;
  Packing packing;
  int64_t n_begin, n_size;
  int64_t k_begin, k_size;
  bool first;      // the chains start here
  int64_t steps;   // of the tile's inner loop
  int64_t a_unit;  // floats of a panel of A
  int64_t b_unit;  // floats of a panel of B
  float* b;        // packed
};

// Packs the panels [begin, end) of B.
void PackB(const Block& block, int64_t begin, int64_t end) {
  const Operand& b = block.product.b;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = block.n_begin + panel * block.tile.columns;
    Pack(block.packing, b.data + block.k_begin * b.row_stride + column * b.column_stride, b.column_stride, b.row_stride,
         std::min<int64_t>(block.tile.columns, block.n_begin + block.n_size - column), block.tile.columns, block.k_size,
         block.b + panel * block.b_unit);
  }
}

// Computes the rows [begin, end) of the block's columns.
void ComputeRows(const Block& block, int64_t begin, int64_t end) {
  const Product& product = block.product;
  const Tile& tile = block.tile;
  alignas(kAlignment) float edge[14 * 32];
  for (int64_t m = begin; m < end; m += kBlockM) {
    const int64_t m_size = std::min(kBlockM, end - m);
    const int64_t panels = (m_size + tile.rows - 1) / tile.rows;
    float* const packed = block_of_a.Get(panels * block.a_unit);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t row = m + panel * tile.rows;
      Pack(block.packing,
           product.a.data + row * product.a.row_stride + block.k_begin * product.a.column_stride, product.a.row_stride,
           product.a.column_stride, std::min<int64_t>(tile.rows, end - row), tile.rows, block.k_size,
           packed + panel * block.a_unit);
    }
    for (int64_t j = 0; j < block.n_size; j += tile.columns) {
      const float* const b = block.b + j / tile.columns * block.b_unit;
      const int64_t columns = std::min<int64_t>(tile.columns, block.n_size - j);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t row = m + panel * tile.rows;
        const int64_t rows = std::min<int64_t>(tile.rows, end - row);
        float* const c = product.c + row * product.c_stride + block.n_begin + j;
        const float* const a = packed + panel * block.a_unit;
        if (rows == tile.rows && columns == tile.columns) {
          tile.compute(block.steps, a, b, c, product.c_stride, block.first);
          continue;
        }
        // At the edge the tile works on a copy; what lies beyond is not stored.
        if (!block.first) {
          for (int64_t i = 0; i < rows; ++i) {
            std::memcpy(edge + i * tile.columns, c + i * product.c_stride, static_cast<size_t>(columns) * sizeof(float));
          }
        }
        tile.compute(block.steps, a, b, edge, tile.columns, block.first);
        for (int64_t i = 0; i < rows; ++i) {
          std::memcpy(c + i * product.c_stride, edge + i * tile.columns, static_cast<size_t>(columns) * sizeof(float));
        }
      }
    }
  }
}

void Run(const Compute& compute, const Product& product, bool parallel) {
  if (product.m <= 0 || product.n <= 0) return;
  const bool bf16 = product.precision == Precision::kBf16;
  const Tile* const pair_tile = bf16 ? PairTile(compute.isa()) : nullptr;
  const Tile& tile = pair_tile != nullptr ? *pair_tile : F32Tile(compute.isa());
  const Packing packing = !bf16 ? Packing::kPlain : pair_tile != nullptr ? Packing::kPairs : Packing::kWidened;
  if (product.k <= 0 && !product.accumulate) {
    for (int64_t i = 0; i < product.m; ++i) std::fill_n(product.c + i * product.c_stride, product.n, 0.0f);
  }
  for (int64_t n = 0; n < product.n; n += kBlockN) {
    for (int64_t k = 0; k < product.k; k += kBlockK) {
      const int64_t n_size = std::min(kBlockN, product.n - n);
      const int64_t k_size = std::min(kBlockK, product.k - k);
      const int64_t steps = packing == Packing::kPlain     ? k_size
                            : packing == Packing::kWidened ? RoundUp(k_size, 2)
                                                           : (k_size + 1) / 2;
      const int64_t panels = (n_size + tile.columns - 1) / tile.columns;
      Block block = {product, tile,  packing, n, n_size, k, k_size, k == 0 && !product.accumulate, steps,
                     steps * tile.rows, steps * tile.columns, nullptr};
      block.b = panels_of_b.Get(panels * block.b_unit);
      if (!parallel) {
        PackB(block, 0, panels);
        ComputeRows(block, 0, product.m);
        continue;
      }
      compute.ParallelFor(panels, 1, [&block](int64_t begin, int64_t end) { PackB(block, begin, end); });
      // Whole tiles a thread.
      const int64_t strips = (product.m + tile.rows - 1) / tile.rows;
      compute.ParallelFor(strips, 2, [&block, &product, &tile](int64_t begin, int64_t end) {
        ComputeRows(block, begin * tile.rows, std::min(product.m, end * tile.rows));
      });
    }
  }
  if (product.bias != nullptr) AddBias(product, 0, product.m);
}

}  // namespace

void Multiply(const Compute& compute, const Product& product) {
  const FlushDenormals flush;
  const bool parallel = compute.threads() > 1 && product.m * product.n * product.k >= kParallelWork;
  Run(compute, product, parallel);
}

void MultiplyBatch(const Compute& compute, absl::Span<const Product> products) {
  compute.ParallelFor(static_cast<int64_t>(products.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Run(compute, products[static_cast<size_t>(i)], /*parallel=*/false);
  });
}

void MultiplyAsDefined(const Product& product) {
  const FlushDenormals flush;
  const bool bf16 = product.precision == Precision::kBf16;
  for (int64_t i = 0; i < product.m; ++i) {
    for (int64_t j = 0; j < product.n; ++j) {
      float* const c = product.c + i * product.c_stride + j;
      const auto a = [&](int64_t p) {
        if (p >= product.k) return 0.0f;
        const float value = product.a.data[i * product.a.row_stride + p * product.a.column_stride];
        return bf16 ? WidenBf16(RoundToBf16(value)) : value;
      };
      const auto b = [&](int64_t p) {
        if (p >= product.k) return 0.0f;
        const float value = product.b.data[p * product.b.row_stride + j * product.b.column_stride];
        return bf16 ? WidenBf16(RoundToBf16(value)) : value;
      };
      float chain = product.accumulate ? *c : 0.0f;
      if (bf16) {
        for (int64_t p = 0; p < product.k; p += 2) {
          chain = std::fma(a(p + 1), b(p + 1), chain);
          chain = std::fma(a(p), b(p), chain);
        }
      } else {
        for (int64_t p = 0; p < product.k; ++p) chain = std::fma(a(p), b(p), chain);
      }
      *c = product.bias != nullptr ? chain + product.bias[j] : chain;
    }
  }
}

uint16_t RoundToBf16(float value) { return static_cast<uint16_t>(RoundedBits(value) >> 16); }
float WidenBf16(uint16_t value) { return FromBits(uint32_t{value} << 16); }

}  // namespace millrace::kernels
