// Computes one tile of a product; one implementation an instruction set.
//
// Units are 32 bits: an f32, or for tiles of pairs two bfloat16, the even k in the lower half. B comes step
// after step, its columns side by side. A comes either as rows that lie apart, their steps side by side, or as a packed
// panel a[step][row] of a given width.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::kernels {

struct TileWork {
  int64_t steps = 0;
  const void* a = nullptr;
  int64_t a_stride = 0;  // units between rows that lie apart; or between the steps of a panel
  const void* b = nullptr;
  int64_t b_stride = 0;  // units between steps: the tile's columns, for a packed panel
  float* c = nullptr;
  int64_t c_stride = 0;
  bool zero = false;  // chains start from zero, else from what c holds
};

// c[rows, columns] continues its chains over the steps.
using TileFunction = void (*)(const TileWork& work);

// A few rows of A times rows of B as they lie in memory.
struct FewRowsWork {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t columns = 0;
  const void* a = nullptr;
  int64_t a_stride = 0;  // units between rows
  const float* b = nullptr;
  int64_t b_stride = 0;
  float* c = nullptr;
  int64_t c_stride = 0;
};

// c[rows, columns] continues its chains over k.
using FewRowsFunction = void (*)(const FewRowsWork& work);

struct Tile {
  int rows = 0;     // at most
  int columns = 0;  // of a panel of B: even, and a multiple of 8
  // With at most so many panels of B, columns of A are faster read where they lie than packed: long steps hide that
  // their lines come from the outer cache.
  int panels_in_place = 0;
  // Rows of B are faster read where they lie than packed while A's rows times the floats from one of B's to the next are
  // at most so many: the fewer columns a panel has, the less of it comes with a line.
  int64_t b_in_place = 0;
  // [panel of A][half of the columns][rows]
  const TileFunction* functions = nullptr;
  FewRowsFunction few_rows = nullptr;  // null: such a product goes as all others

  TileFunction Find(bool panel, bool half, int64_t row_count) const {
    return functions[((panel ? 2 : 0) + (half ? 1 : 0)) * (rows + 1) + row_count];
  }
};

// The tile for f32 units.
const Tile& F32Tile(Isa isa);
// The tile for pairs; null where bf16 goes through f32 units instead.
const Tile* PairTile(Isa isa);

extern const Tile kScalarTile;
extern const Tile kAvx2Tile;
extern const Tile kAvx512Tile;
extern const Tile kAvx512Bf16Tile;

// Compares the instruction with its definition. Requires a processor that has it.
bool Bf16InstructionIsAsDefined();

}  // namespace millrace::kernels
