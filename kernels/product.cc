// The blocking follows Goto's: panels of B, packed, in each core's outer cache, a strip of A's rows in the inner one, a
// tile in registers. Rows of f32 are multiplied where they lie. Chains go on across blocks of k by loading what was
// stored.
#include "kernels/product.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "absl/container/fixed_array.h"
#include "absl/types/span.h"
#include "kernels/bfloat16.h"
#include "kernels/busy_wait.h"
#include "kernels/pack.h"
#include "kernels/relay.h"
#include "kernels/scratch.h"
#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kBlockSteps = 384;        // a strip of A is half the inner cache
constexpr int64_t kCellFloats = 160 << 10;  // of a cell's B, packed
constexpr int64_t kPieceRows = 16;          // of an operand, packed together
constexpr int64_t kInnerFloats = 8 << 10;   // in the inner cache the order does not matter
constexpr int64_t kStripsTogether = 8;      // at most, packed as panels
constexpr size_t kAlignment = 64;
// Products of fewer multiply-adds stay on one thread.
constexpr int64_t kParallelWork = 1 << 18;
constexpr int64_t kPiecesOfCell = 8;  // at least, if it has so many panels
// Of an element of A or B that a thread reads and packs, in multiply-adds.
constexpr int64_t kOperandCost = 32;
// Of an element of A or C in a row that otherwise is another thread's, in multiply-adds: 100 where cores share no
// cache, a few where they do.
constexpr int64_t kForeignCost = 16;
constexpr int64_t kLeastOfLeg = 192;  // of k
constexpr int64_t kFewRows = 6;       // of A: as many as are not faster with B packed

thread_local Scratch strips_of_a;
thread_local Scratch panels_of_b;

// A block of k of a block of columns.
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

  // Whether the tile takes a panel where it lies: rows of f32 that are not used often.
  bool InPlace(int64_t panel) const {
    return packer.packing == Packing::kPlain && product.b.column_stride == 1 &&
           product.m * product.b.row_stride <= tile.b_in_place && (panel + 1) * tile.columns <= n_size;
  }
  int64_t panels() const { return DivideUp(n_size, tile.columns); }
};

// Rows at such a distance fall on each other in the inner cache.
bool Collides(int64_t row_stride) { return row_stride % 512 == 0; }

// How the tile takes strips of A.
enum class Rows { kApart, kAsPanel, kPackedApart, kPackedAsPanel };

Rows RowsOf(const Block& block, int64_t panels) {
  const Operand& a = block.product.a;
  const bool plain = block.packer.packing == Packing::kPlain;
  if (a.column_stride == 1) return plain && !Collides(a.row_stride) ? Rows::kApart : Rows::kPackedApart;
  return plain && panels <= block.tile.panels_in_place ? Rows::kAsPanel : Rows::kPackedAsPanel;
}

// What one thread begins with: some strips of some panels, and these panels of B packed for it alone. What one core
// writes and another reads takes its time on the way between them; where they share no cache, more than to pack it
// twice.
struct alignas(kAlignment) Cell {
  int64_t first_row = 0, past_row = 0;
  int64_t strips = 0;  // of these rows
  int64_t first_panel = 0, past_panel = 0;
  float* b = nullptr;  // packed
  Rows form = Rows::kApart;
  // Its pieces of work: so many strips, few of them cut across the panels, so that no thread waits long for the last
  // one.
  int64_t together = 1;
  int64_t cuts = 1;
  enum State { kFree, kTaken, kPacked };
  std::atomic<State> state = kFree;
  std::atomic<int64_t> next = 0;

  // The `index`th of `count` parts of a product's rows. Strips are as even as can be.
  void TakeRows(const Product& product, const Tile& tile, int64_t index, int64_t count) {
    first_row = index * product.m / count;
    past_row = (index + 1) * product.m / count;
    strips = DivideUp(past_row - first_row, tile.rows);
  }
  int64_t RowOf(int64_t strip) const { return first_row + strip * (past_row - first_row) / strips; }
  int64_t panels() const { return past_panel - first_panel; }
  int64_t pieces() const { return DivideUp(strips, together) * cuts; }
};

// How the cell takes strips of A.
void TakeForm(const Block& block, Cell* cell) {
  cell->form = RowsOf(block, cell->panels());
  if (cell->form != Rows::kPackedAsPanel) return;
  cell->together = DivideUp(cell->strips, DivideUp(cell->strips, kStripsTogether));
}

// Packs the cell's panels but for those that the tile takes where they lie. Where rows lie side by side, some rows of
// all panels after another, so that memory is read in its order.
void PackB(const Block& block, const Cell& cell) {
  const Operand& b = block.product.b;
  const auto pack = [&](int64_t panel, int64_t k, int64_t k_size) {
    const int64_t column = block.n_begin + panel * block.tile.columns;
    block.packer.panel(
        b.data + (block.k_begin + k) * b.row_stride + column * b.column_stride, b.column_stride, b.row_stride,
        std::min<int64_t>(block.tile.columns, block.n_begin + block.n_size - column), block.tile.columns, k_size,
        cell.b + (panel - cell.first_panel) * block.b_unit + UnitsOf(block.packer.packing, k) * block.tile.columns);
  };
  const int64_t piece = b.column_stride == 1 ? kPieceRows : block.k_size;
  for (int64_t k = 0; k < block.k_size; k += piece) {
    for (int64_t panel = cell.first_panel; panel < cell.past_panel; ++panel) {
      if (!block.InPlace(panel)) pack(panel, k, std::min(piece, block.k_size - k));
    }
  }
}

// Strips of A as the tile takes them, `size` units from one to the next.
struct Strips {
  const float* units;
  int64_t stride;
  bool panel;
  int64_t size;
};

// The strips [first, past): one, but for those packed as panels, for which memory is read in its order.
Strips TakeStrips(const Block& block, const Cell& cell, int64_t first, int64_t past) {
  const Rows form = cell.form;
  const Operand& a = block.product.a;
  const auto source = [&](int64_t row, int64_t k) {
    return a.data + row * a.row_stride + (block.k_begin + k) * a.column_stride;
  };
  const int64_t row = cell.RowOf(first);
  if (form == Rows::kApart) return {source(row, 0), a.row_stride, false, 0};
  if (form == Rows::kAsPanel) return {source(row, 0), a.column_stride, true, 0};
  if (form == Rows::kPackedApart) {
    const int64_t rows = cell.RowOf(past) - row;
    const int64_t stride = RoundUp(block.steps, 16) + (Collides(RoundUp(block.steps, 16)) ? 16 : 0);
    float* const packed = strips_of_a.Get(rows * stride);
    block.packer.rows(source(row, 0), a.row_stride, rows, block.k_size, packed, stride);
    return {packed, stride, false, 0};
  }
  const int64_t width = RoundUp(block.tile.rows, 8), size = block.steps * width;
  float* const packed = strips_of_a.Get((past - first) * size);
  const int64_t piece = past - first > 1 && block.product.m * block.k_size > kInnerFloats ? kPieceRows : block.k_size;
  for (int64_t k = 0; k < block.k_size; k += piece) {
    for (int64_t strip = first; strip < past; ++strip) {
      block.packer.panel(source(cell.RowOf(strip), k), a.row_stride, a.column_stride,
                         cell.RowOf(strip + 1) - cell.RowOf(strip), width, std::min(piece, block.k_size - k),
                         packed + (strip - first) * size + UnitsOf(block.packer.packing, k) * width);
    }
  }
  return {packed, width, true, size};
}

// To columns [begin, end) of a row of C, if there is one.
void AddBias(const Product& product, int64_t row, int64_t begin, int64_t end) {
  if (product.bias == nullptr) return;
  float* const c = product.c + row * product.c_stride;
  for (int64_t j = begin; j < end; ++j) c[j] += product.bias[j];
}

// Computes a strip of the panels [begin, end) of the cell.
void ComputeStrip(const Block& block, const Cell& cell, int64_t strip, const float* units, const Strips& strips,
                  int64_t begin, int64_t end) {
  const Product& product = block.product;
  const int64_t row = cell.RowOf(strip), rows = cell.RowOf(strip + 1) - row;
  const Tile& tile = block.tile;
  alignas(kAlignment) float edge[14 * 32];
  const int64_t half = tile.columns / 2;
  float* const c = product.c + row * product.c_stride + block.n_begin;
  TileWork work;
  work.steps = block.steps;
  work.a = units;
  work.a_stride = strips.stride;
  work.zero = block.first;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * tile.columns;
    const int64_t columns = std::min<int64_t>(tile.columns, block.n_size - column);
    const TileFunction compute = tile.Find(strips.panel, columns <= half, rows);
    if (block.InPlace(panel)) {
      const Operand& b = product.b;
      work.b = b.data + block.k_begin * b.row_stride + block.n_begin + column;
      work.b_stride = b.row_stride;
    } else {
      work.b = cell.b + (panel - cell.first_panel) * block.b_unit;
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
  if (!block.last) return;
  const int64_t first = begin * tile.columns, past = std::min(block.n_size, end * tile.columns);
  for (int64_t i = 0; i < rows; ++i) AddBias(product, row + i, block.n_begin + first, block.n_begin + past);
}

// Computes one of the cell's pieces.
void ComputePiece(const Block& block, const Cell& cell, int64_t piece) {
  const int64_t group = piece / cell.cuts, cut = piece % cell.cuts;
  const int64_t begin = cell.first_panel + cut * cell.panels() / cell.cuts;
  const int64_t end = cell.first_panel + (cut + 1) * cell.panels() / cell.cuts;
  const int64_t first = group * cell.together;
  const int64_t past = std::min(first + cell.together, cell.strips);
  const Strips strips = TakeStrips(block, cell, first, past);
  for (int64_t strip = first; strip < past; ++strip) {
    ComputeStrip(block, cell, strip, strips.units + (strip - first) * strips.size, strips, begin, end);
  }
}

// Whether both operands lie in memory as they are multiplied, a row for each k, as those of a gradient of weights.
bool LieByK(const Product& product) { return product.a.row_stride == 1 && product.b.column_stride == 1; }

// How many cells there are down the rows and across the columns.
struct Grid {
  int64_t rows = 1, columns = 1;

  int64_t cells() const { return rows * columns; }
  // Of the largest cell.
  int64_t RowsOf(const Product& product) const { return DivideUp(product.m, rows); }
  int64_t ColumnsOf(const Product& product, const Tile& tile) const {
    return std::min(DivideUp(DivideUp(product.n, tile.columns), columns) * tile.columns, product.n);
  }
  // What a thread does for each k, in multiply-adds: its cell, the parts of A and B that it reads and packs, and those
  // of A, B and C that are in rows of other threads.
  int64_t CostOf(const Product& product, const Tile& tile, int64_t threads) const {
    const int64_t m = RowsOf(product), n = ColumnsOf(product, tile);
    const int64_t foreign =
        LieByK(product) ? m + n - (m + n) / threads : (m - m / columns) * (product.k + n) / product.k;
    return m * n + kOperandCost * (m + n) + kForeignCost * foreign;
  }
};

// The grid whose threads are done first.
Grid ChooseGrid(const Product& product, const Tile& tile, int64_t threads) {
  const int64_t panels = DivideUp(product.n, tile.columns);
  Grid best;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t rows = 1; rows <= std::min(threads, DivideUp(product.m, tile.rows)); ++rows) {
    const Grid grid = {rows, std::min(threads / rows, panels)};
    const int64_t cost = grid.CostOf(product, tile, threads);
    if (cost < least) {
      least = cost;
      best = grid;
    }
  }
  return best;
}

// Computes cells, from the thread's own on, until no piece of any is left: those that nobody has begun, then pieces of
// others.
void RunCells(const Block& block, absl::Span<Cell> cells) {
  const auto each = [&](auto&& visit) {
    const auto own = static_cast<size_t>(Compute::ThreadIndex()) % cells.size();
    for (size_t i = 0; i < cells.size(); ++i) visit(cells[(own + i) % cells.size()]);
  };
  const auto compute = [&](Cell& cell) {
    for (int64_t piece; (piece = cell.next.fetch_add(1, std::memory_order_relaxed)) < cell.pieces();) {
      ComputePiece(block, cell, piece);
    }
  };
  each([&](Cell& cell) {
    Cell::State free = Cell::kFree;
    if (!cell.state.compare_exchange_strong(free, Cell::kTaken)) return;
    PackB(block, cell);
    cell.state.store(Cell::kPacked, std::memory_order_release);
    compute(cell);
  });
  each([&](Cell& cell) {
    if (cell.next.load(std::memory_order_relaxed) >= cell.pieces()) return;
    BusyWait([&] { return cell.state.load(std::memory_order_acquire) == Cell::kPacked; });
    compute(cell);
  });
}

void RunBlock(const Compute& compute, const Block& block, const Grid& grid) {
  const int64_t panels = block.panels();
  const int64_t columns = std::min(grid.columns, panels);
  absl::FixedArray<Cell, 4> cells(static_cast<size_t>(grid.rows * columns));
  // Each cell's B has its place, whatever the product: else one thread would write where another has written before,
  // and wait for the lines.
  const int64_t room = std::max(kCellFloats, block.b_unit);
  float* const b = panels_of_b.Get(static_cast<int64_t>(cells.size()) * room);
  for (int64_t i = 0; i < grid.rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t index = i * columns + j;
      Cell& cell = cells[static_cast<size_t>(index)];
      cell.TakeRows(block.product, block.tile, i, grid.rows);
      cell.first_panel = j * panels / columns;
      cell.past_panel = (j + 1) * panels / columns;
      cell.b = b + index * room;
      TakeForm(block, &cell);
      if (cells.size() > 1) {
        cell.cuts = std::clamp<int64_t>(kPiecesOfCell / cell.strips, 1, cell.panels());
      }
    }
  }
  const absl::Span<Cell> all = absl::MakeSpan(cells);
  compute.ParallelFor(static_cast<int64_t>(cells.size()), 1, [&](int64_t, int64_t) { RunCells(block, all); });
}

// A product whose k is cut: chains of C are begun by one thread and gone on with by the next, a tile behind it. So each
// thread reads those rows of A and B that are its own.
class Legs {
 public:
  Legs(const Compute& compute, const Product& product, const Tile& tile, const Packer& packer)
      : product_(product),
        tile_(tile),
        packer_(packer),
        relay_(compute, product.k, kLeastOfLeg),
        grid_(ChooseGrid(product, tile, relay_.lanes())),
        b_unit_(UnitsOf(packer.packing, DivideUp(product.k, relay_.legs()) + 2) * tile.columns) {}

  // Whether threads are done sooner than with cells of `grid`. A leg's strip of A must stay in the inner cache; and
  // where there are more panels of B than there is room for, A is read again for each few of them.
  bool Pay(const Grid& grid, int64_t threads) const {
    const int64_t steps = UnitsOf(packer_.packing, DivideUp(product_.k, relay_.legs()));
    if (relay_.legs() < 2 || steps > kBlockSteps) return false;
    const int64_t m = grid_.RowsOf(product_), n = grid_.ColumnsOf(product_, tile_);
    const int64_t cost = (m * n + kOperandCost * (BlocksOf(DivideUp(n, tile_.columns)) * m + n)) / relay_.legs() +
                         kForeignCost * m * n / product_.k;
    return cost < grid.CostOf(product_, tile_, threads);
  }

  void Run() const {
    float* const b = panels_of_b.Get(relay_.legs() * relay_.lanes() * kCellFloats);
    relay_.Run([&](Relay::Leg& leg) {
      if (leg.lane() < grid_.cells()) RunLeg(&leg, b + (leg.index() * relay_.lanes() + leg.lane()) * kCellFloats);
    });
  }

 private:
  // Of so many panels.
  int64_t BlocksOf(int64_t panels) const { return DivideUp(panels, kCellFloats / b_unit_); }

  void RunLeg(Relay::Leg* leg, float* b) const {
    const int64_t panels = DivideUp(product_.n, tile_.columns), column = leg->lane() % grid_.columns;
    const int64_t first = column * panels / grid_.columns, past = (column + 1) * panels / grid_.columns;
    const int64_t k = leg->end() - leg->begin(), steps = UnitsOf(packer_.packing, k);
    const int64_t blocks = BlocksOf(past - first);
    Cell cell;
    cell.TakeRows(product_, tile_, leg->lane() / grid_.columns, grid_.rows);
    cell.b = b;
    const int64_t all = cell.strips * (past - first);
    // Tiles passed on together. To look whether one has come takes its time, and so does waiting for several; both are
    // least at about the root of how many there are.
    const int64_t together = std::max<int64_t>(std::lround(std::sqrt(static_cast<double>(all)) / 4), 1);
    int64_t tiles = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = first + i * (past - first) / blocks, end = first + (i + 1) * (past - first) / blocks;
      const int64_t n = begin * tile_.columns;
      const Block block = {product_,
                           tile_,
                           packer_,
                           n,
                           std::min(end * tile_.columns, product_.n) - n,
                           leg->begin(),
                           k,
                           steps,
                           steps * tile_.columns,
                           leg->begin() == 0 && !product_.accumulate,
                           leg->end() == product_.k};
      cell.past_panel = end - begin;
      TakeForm(block, &cell);
      PackB(block, cell);
      for (int64_t strip = 0; strip < cell.strips; strip += cell.together) {
        const int64_t past_strip = std::min(strip + cell.together, cell.strips);
        const Strips strips = TakeStrips(block, cell, strip, past_strip);
        for (int64_t j = strip; j < past_strip; ++j) {
          for (int64_t panel = 0; panel < cell.past_panel; ++panel) {
            leg->Await(tiles++);
            ComputeStrip(block, cell, j, strips.units + (j - strip) * strips.size, strips, panel, panel + 1);
            if (tiles % together == 0 || tiles == all) leg->Pass(tiles);
          }
        }
      }
    }
  }

  const Product& product_;
  const Tile& tile_;
  const Packer& packer_;
  const Relay relay_;
  const Grid grid_;       // of a leg's cells, one a lane
  const int64_t b_unit_;  // floats of the longest leg's panel of B
};

// A few rows of A times rows of B as they lie: to pack them would take longer than to multiply.
void RunFewRows(const Compute& compute, const Product& product, const Tile& tile, const Packer& packer, bool parallel) {
  const int64_t stride = RoundUp(UnitsOf(packer.packing, product.k), 16);
  float* const a = strips_of_a.Get(product.m * stride);
  packer.rows(product.a.data, product.a.row_stride, product.m, product.k, a, stride);
  const int64_t grain = parallel ? RoundUp(DivideUp(product.n, compute.threads()), 64) : product.n;
  compute.ParallelFor(product.n, grain, [&](int64_t begin, int64_t end) {
    FewRowsWork work;
    work.rows = product.m;
    work.k = product.k;
    work.columns = end - begin;
    work.a = a;
    work.a_stride = stride;
    work.b = product.b.data + begin;
    work.b_stride = product.b.row_stride;
    work.c = product.c + begin;
    work.c_stride = product.c_stride;
    for (int64_t i = 0; i < product.m && !product.accumulate; ++i) {
      std::fill_n(work.c + i * work.c_stride, work.columns, 0.0f);
    }
    tile.few_rows(work);
    for (int64_t i = 0; i < product.m; ++i) AddBias(product, i, begin, end);
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
      AddBias(product, i, 0, product.n);
    }
    return;
  }
  if (product.m <= kFewRows && tile.few_rows != nullptr && product.a.column_stride == 1 &&
      product.b.column_stride == 1) {
    RunFewRows(compute, product, tile, packer, parallel);
    return;
  }
  const Grid grid = parallel ? ChooseGrid(product, tile, compute.threads()) : Grid();
  if (parallel && LieByK(product)) {
    const Legs legs(compute, product, tile, packer);
    if (legs.Pay(grid, compute.threads())) {
      legs.Run();
      return;
    }
  }
  // Blocks as even as can be; those of k even, so that pairs stay together.
  const int64_t k_most = kBlockSteps * ElementsOfUnit(packing);
  const int64_t k_blocks = DivideUp(product.k, k_most);
  const int64_t k_block = RoundUp(DivideUp(product.k, k_blocks), 2);
  const int64_t cell_most = std::max<int64_t>(kCellFloats / UnitsOf(packing, k_block) / tile.columns, 1) * tile.columns;
  const int64_t n_most = cell_most * grid.columns;
  const int64_t n_blocks = DivideUp(product.n, n_most);
  const int64_t n_block = RoundUp(DivideUp(product.n, n_blocks), tile.columns);
  for (int64_t n = 0; n < product.n; n += n_block) {
    for (int64_t k = 0; k < product.k; k += k_block) {
      const int64_t n_size = std::min(n_block, product.n - n), k_size = std::min(k_block, product.k - k);
      const int64_t steps = UnitsOf(packing, k_size);
      const Block block = {product,
                           tile,
                           packer,
                           n,
                           n_size,
                           k,
                           k_size,
                           steps,
                           steps * tile.columns,
                           k == 0 && !product.accumulate,
                           k + k_size == product.k};
      RunBlock(compute, block, grid);
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
