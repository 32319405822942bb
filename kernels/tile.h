// Computes one tile of a product from packed panels; one implementation an instruction set.
//
// A panel of A holds `rows` rows, k after k: a[k][rows]; a panel of B `columns` columns: b[k][columns]. Panels of pairs
// hold two bfloat16 in each 32 bits, the even k in the lower half: a[k/2][rows], b[k/2][columns].
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::kernels {

struct Tile {
  int rows = 0;
  int columns = 0;
  // c[rows, columns] continues its chains over k elements (pairs, for a tile of pairs). `zero`: from zero.
  void (*compute)(int64_t k, const void* a, const void* b, float* c, int64_t c_stride, bool zero) = nullptr;
};

// The tile for f32 panels.
const Tile& F32Tile(Isa isa);
// The tile for panels of pairs; null where bf16 goes through f32 panels instead.
const Tile* PairTile(Isa isa);

extern const Tile kScalarTile;
extern const Tile kAvx2Tile;
extern const Tile kAvx512Tile;
extern const Tile kAvx512Bf16Tile;

// Compares the instruction with its definition. Requires a processor that has it.
bool Bf16InstructionIsAsDefined();

}  // namespace millrace::kernels
