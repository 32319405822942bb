// The blocking is Goto's: panels of B in the outer cache, a block of A in the inner one, a tile in registers. Chains go
// on across blocks of k by loading what was stored.
#include "kernels/product.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kBlockK = 256;   // even
constexpr int64_t kBlockM = 168;   // a multiple of every tile's rows: 4, 6, 14
constexpr int64_t kBlockN = 2048;  // a multiple of every tile's columns
constexpr size_t kAlignment = 64;
// Products below this many multiply-adds stay on one thread.
constexpr int64_t kParallelWork = 1 << 18;

// Memory of a thread that grows to what it was asked for most and stays.
class Scratch {
 public:
  float* Get(int64_t floats) {
    if (floats > size_) {
      memory_.reset(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float),
                                                       std::align_val_t(kAlignment))));
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

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

// Packs `width` lines (rows of A or columns of B; `lines` of them are there, the rest zeros) over k elements from
// source: line l, element p is source[l * line_stride + p * k_stride]. Odd k is filled up with a zero if not kPlain.
template <Packing kPacking>
void PackPanel(const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width, int64_t k,
               float* panel) {
  const auto at = [&](int64_t line, int64_t p) { return source[line * line_stride + p * k_stride]; };
  if constexpr (kPacking == Packing::kPlain) {
    if (line_stride == 1 && lines == width) {
      for (int64_t p = 0; p < k; ++p) {
        std::memcpy(panel + p * width, source + p * k_stride, static_cast<size_t>(width) * sizeof(float));
      }
      return;
    }
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t p = 0; p < k; ++p) panel[p * width + line] = at(line, p);
    }
    for (int64_t line = lines; line < width; ++line) {
      for (int64_t p = 0; p < k; ++p) panel[p * width + line] = 0.0f;
    }
  } else if constexpr (kPacking == Packing::kWidened) {
    const int64_t even = k / 2 * 2;
    if (line_stride == 1) {
      for (int64_t p = 0; p < even; ++p) {
        float* const row = panel + (p ^ 1) * width;
        const float* const from = source + p * k_stride;
        for (int64_t line = 0; line < lines; ++line) row[line] = FromBits(RoundedBits(from[line]));
        for (int64_t line = lines; line < width; ++line) row[line] = 0.0f;
      }
    } else {
      for (int64_t line = 0; line < width; ++line) {
        for (int64_t p = 0; p < even; ++p) {
          panel[(p ^ 1) * width + line] = line < lines ? FromBits(RoundedBits(at(line, p))) : 0.0f;
        }
      }
    }
    if (k % 2 != 0) {
      for (int64_t line = 0; line < width; ++line) {
        panel[even * width + line] = 0.0f;
        panel[(even + 1) * width + line] = line < lines ? FromBits(RoundedBits(at(line, even))) : 0.0f;
      }
    }
  } else {
    auto* const pairs = reinterpret_cast<uint32_t*>(panel);
    if (line_stride == 1) {
      for (int64_t p = 0; p + 1 < k; p += 2) {
        uint32_t* const row = pairs + p / 2 * width;
        const float* const low = source + p * k_stride;
        const float* const high = low + k_stride;
        for (int64_t line = 0; line < lines; ++line) row[line] = RoundedBits(low[line]) >> 16 | RoundedBits(high[line]);
        for (int64_t line = lines; line < width; ++line) row[line] = 0;
      }
    } else {
      for (int64_t line = 0; line < width; ++line) {
        for (int64_t p = 0; p + 1 < k; p += 2) {
          pairs[p / 2 * width + line] =
              line < lines ? RoundedBits(at(line, p)) >> 16 | RoundedBits(at(line, p + 1)) : 0;
        }
      }
    }
    if (k % 2 != 0) {
      for (int64_t line = 0; line < width; ++line) {
        pairs[k / 2 * width + line] = line < lines ? RoundedBits(at(line, k - 1)) >> 16 : 0;
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
