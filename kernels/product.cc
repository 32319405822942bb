// The blocking follows Goto's: a block of B, packed in panels, in the outer cache, a strip of A's rows in the inner
// one, a tile in registers. Rows of f32 are multiplied where they lie. Chains go on across blocks of k by loading what
// was stored.
#include "kernels/product.h"

#include <algorithm>
#include <cmath>

#include "kernels/bfloat16.h"
#include "kernels/pack.h"
#include "kernels/scratch.h"
#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kBlockSteps = 384;         // a strip of A is half the inner cache
constexpr int64_t kBlockFloats = 160 << 10;  // of B, packed
constexpr int64_t kInPlaceSize = 1 << 16;    // of A's rows times B's; beyond, a packed B pays
constexpr int64_t kPieceRows = 16;           // of B, packed together
constexpr size_t kAlignment = 64;
// Products below this many multiply-adds stay on one thread.
constexpr int64_t kParallelWork = 1 << 18;
constexpr int64_t kTasksAThread = 8;

thread_local Scratch strip_of_a;
thread_local Scratch panels_of_b;

// A block of k of a block of columns: everything that the threads share.
struct Block {
  const Product& product;
  const Tile& tile;
  const Packer& packer;
  int64_t n_begin, n_size;
  int64_t k_begin, k_size;
  int64_t steps;   // of the tile's inner loop
  int64_t b_unit;  // floats of a panel of B
  bool first;      // the chains start here
  bool last;       // and end here
  float* b;        // packed

  // Whether the tile takes a panel where it lies: rows of f32 that are not used often.
  bool InPlace(int64_t panel) const {
    return packer.packing == Packing::kPlain && product.b.column_stride == 1 &&
           product.m * product.b.row_stride <= kInPlaceSize && (panel + 1) * tile.columns <= n_size;
  }
  int64_t panels() const { return (n_size + tile.columns - 1) / tile.columns; }
};

// How packing B is divided: where rows lie side by side, into some rows of all panels, so that memory is read in its
// order; else into panels.
bool PacksRows(const Block& block) { return block.product.b.column_stride == 1; }

int64_t PiecesOfB(const Block& block, int64_t panels) {
  return PacksRows(block) ? (block.k_size + kPieceRows - 1) / kPieceRows : panels;
}

// Packs the pieces [begin, end) of the panels from `first` on.
void PackB(const Block& block, int64_t first, int64_t begin, int64_t end) {
  const Operand& b = block.product.b;
  const auto pack = [&](int64_t panel, int64_t k, int64_t k_size) {
    const int64_t column = block.n_begin + panel * block.tile.columns;
    block.packer.panel(b.data + (block.k_begin + k) * b.row_stride + column * b.column_stride, b.column_stride,
                       b.row_stride, std::min<int64_t>(block.tile.columns, block.n_begin + block.n_size - column),
                       block.tile.columns, k_size,
                       block.b + panel * block.b_unit + UnitsOf(block.packer.packing, k) * block.tile.columns);
  };
  if (!PacksRows(block)) {
    for (int64_t piece = begin; piece < end; ++piece) pack(first + piece, 0, block.k_size);
    return;
  }
  for (int64_t k = begin * kPieceRows; k < std::min(end * kPieceRows, block.k_size); k += kPieceRows) {
    for (int64_t panel = first; panel < block.panels(); ++panel) {
      pack(panel, k, std::min(kPieceRows, block.k_size - k));
    }
  }
}

// A strip of A's rows as the tile takes it.
struct Strip {
  const float* units;
  int64_t stride;
  bool panel;
};

// Rows at such a distance fall on each other in the inner cache.
bool Collides(int64_t row_stride) { return row_stride % 512 == 0; }

Strip TakeStrip(const Block& block, int64_t row, int64_t rows) {
  const Operand& a = block.product.a;
  const float* const source = a.data + row * a.row_stride + block.k_begin * a.column_stride;
  if (a.column_stride == 1) {
    if (block.packer.packing == Packing::kPlain && !Collides(a.row_stride)) return {source, a.row_stride, false};
    const int64_t stride = RoundUp(block.steps, 16) + (Collides(RoundUp(block.steps, 16)) ? 16 : 0);
    float* const packed = strip_of_a.Get(rows * stride);
    block.packer.rows(source, a.row_stride, rows, block.k_size, packed, stride);
    return {packed, stride, false};
  }
  const int64_t width = RoundUp(rows, 8);
  float* const packed = strip_of_a.Get(block.steps * width);
  block.packer.panel(source, a.row_stride, a.column_stride, rows, width, block.k_size, packed);
  return {packed, width, true};
}

// Computes `rows` rows of the panels [begin, end).
void ComputeStrip(const Block& block, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  const Product& product = block.product;
  const Tile& tile = block.tile;
  alignas(kAlignment) float edge[14 * 32];
  const Strip strip = TakeStrip(block, row, rows);
  const int64_t half = tile.columns / 2;
  float* const c = product.c + row * product.c_stride + block.n_begin;
  TileWork work;
  work.steps = block.steps;
  work.a = strip.units;
  work.a_stride = strip.stride;
  work.zero = block.first;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * tile.columns;
    const int64_t columns = std::min<int64_t>(tile.columns, block.n_size - column);
    const TileFunction compute = tile.Find(strip.panel, columns <= half, rows);
    if (block.InPlace(panel)) {
      const Operand& b = product.b;
      work.b = b.data + block.k_begin * b.row_stride + block.n_begin + column;
      work.b_stride = b.row_stride;
    } else {
      work.b = block.b + panel * block.b_unit;
      work.b_stride = tile.columns;
    }
    work.c = c + column;
    work.c_stride = product.c_stride;
    if (columns == tile.columns || columns == half) {
      compute(work);
      continue;
    }
    // At the edge the tile works on a copy; what lies beyond is not stored.
    const auto copy = [&](const float* from, int64_t from_stride, float* to, int64_t to_stride) {
      for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * from_stride, columns, to + i * to_stride);
    };
    work.c = edge;
    work.c_stride = tile.columns;
    if (!block.first) copy(c + column, product.c_stride, edge, tile.columns);
    compute(work);
    copy(edge, tile.columns, c + column, product.c_stride);
  }
  if (!block.last || product.bias == nullptr) return;
  const int64_t first = begin * tile.columns, past = std::min(block.n_size, end * tile.columns);
  const float* const bias = product.bias + block.n_begin;
  for (int64_t i = 0; i < rows; ++i) {
    float* const to = c + i * product.c_stride;
    for (int64_t j = first; j < past; ++j) to[j] += bias[j];
  }
}

void RunBlock(const Compute& compute, Block& block, bool parallel) {
  const int64_t m = block.product.m, panels = block.panels();
  block.b = panels_of_b.Get(panels * block.b_unit);
  // Strips as even as can be.
  const int64_t strips = (m + block.tile.rows - 1) / block.tile.rows;
  const auto row_of = [m, strips](int64_t strip) { return strip * m / strips; };
  const int64_t first = !block.InPlace(0) ? 0 : panels - (block.InPlace(panels - 1) ? 0 : 1);
  if (!parallel) {
    PackB(block, first, 0, PiecesOfB(block, panels - first));
    for (int64_t strip = 0; strip < strips; ++strip) {
      ComputeStrip(block, row_of(strip), row_of(strip + 1) - row_of(strip), 0, panels);
    }
    return;
  }
  if (first < panels) {
    compute.ParallelFor(PiecesOfB(block, panels - first), 1,
                        [&block, first](int64_t begin, int64_t end) { PackB(block, first, begin, end); });
  }
  // Few strips are cut across the columns, so that no thread waits long for the last one.
  const int64_t cuts = std::clamp<int64_t>(kTasksAThread * compute.threads() / strips, 1, panels);
  compute.ParallelFor(strips * cuts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t strip = task / cuts, cut = task % cuts;
      ComputeStrip(block, row_of(strip), row_of(strip + 1) - row_of(strip), cut * panels / cuts,
                   (cut + 1) * panels / cuts);
    }
  });
}

void Run(const Compute& compute, const Product& product, bool parallel) {
  if (product.m <= 0 || product.n <= 0) return;
  const bool bf16 = product.precision == Precision::kBf16;
  const Tile* const pair_tile = bf16 ? PairTile(compute.isa()) : nullptr;
  const Tile& tile = pair_tile != nullptr ? *pair_tile : F32Tile(compute.isa());
  const Packer& packer = !bf16 ? kPlainPacker : pair_tile != nullptr ? kPairsPacker : kWidenedPacker;
  const Packing packing = packer.packing;
  if (product.k <= 0) {
    for (int64_t i = 0; i < product.m; ++i) {
      float* const row = product.c + i * product.c_stride;
      if (!product.accumulate) std::fill_n(row, product.n, 0.0f);
      for (int64_t j = 0; product.bias != nullptr && j < product.n; ++j) row[j] += product.bias[j];
    }
    return;
  }
  // Blocks as even as can be; those of k even, so that pairs stay together.
  const int64_t k_most = kBlockSteps * ElementsOfUnit(packing);
  const int64_t k_blocks = (product.k + k_most - 1) / k_most;
  const int64_t k_block = RoundUp((product.k + k_blocks - 1) / k_blocks, 2);
  const int64_t n_most = std::max<int64_t>(kBlockFloats / UnitsOf(packing, k_block) / tile.columns, 1) * tile.columns;
  const int64_t n_blocks = (product.n + n_most - 1) / n_most;
  const int64_t n_block = RoundUp((product.n + n_blocks - 1) / n_blocks, tile.columns);
  for (int64_t n = 0; n < product.n; n += n_block) {
    for (int64_t k = 0; k < product.k; k += k_block) {
      const int64_t n_size = std::min(n_block, product.n - n), k_size = std::min(k_block, product.k - k);
      const int64_t steps = UnitsOf(packing, k_size);
      Block block = {product,
                     tile,
                     packer,
                     n,
                     n_size,
                     k,
                     k_size,
                     steps,
                     steps * tile.columns,
                     k == 0 && !product.accumulate,
                     k + k_size == product.k,
                     nullptr};
      RunBlock(compute, block, parallel);
    }
  }
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

}  // namespace millrace::kernels
