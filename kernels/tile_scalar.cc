#include <cmath>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = 8;

template <bool kPanel, int kHalves>
void ComputeTile(const TileWork& work, int rows) {
  const auto* a = static_cast<const float*>(work.a);
  const auto* b = static_cast<const float*>(work.b);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < kColumns / 2 * kHalves; ++j) {
      float& c = work.c[i * work.c_stride + j];
      float chain = work.zero ? 0.0f : c;
      for (int64_t p = 0; p < work.steps; ++p) {
        chain = std::fma(kPanel ? a[p * work.a_stride + i] : a[i * work.a_stride + p], b[p * work.b_stride + j], chain);
      }
      c = chain;
    }
  }
}

template <bool kPanel, int kHalves, int kRowCount>
void Compute(const TileWork& work) {
  ComputeTile<kPanel, kHalves>(work, kRowCount);
}

constexpr TileFunction kFunctions[] = {
    nullptr, &Compute<false, 2, 1>, &Compute<false, 2, 2>, &Compute<false, 2, 3>, &Compute<false, 2, 4>,
    nullptr, &Compute<false, 1, 1>, &Compute<false, 1, 2>, &Compute<false, 1, 3>, &Compute<false, 1, 4>,
    nullptr, &Compute<true, 2, 1>,  &Compute<true, 2, 2>,  &Compute<true, 2, 3>,  &Compute<true, 2, 4>,
    nullptr, &Compute<true, 1, 1>,  &Compute<true, 1, 2>,  &Compute<true, 1, 3>,  &Compute<true, 1, 4>,
};

}  // namespace

const Tile kScalarTile = {kRows, kColumns, 4, 1 << 20, kFunctions};

const Tile& F32Tile(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return kScalarTile;
    case Isa::kAvx2:
      return kAvx2Tile;
    default:
      return kAvx512Tile;
  }
}

const Tile* PairTile(Isa isa) { return isa == Isa::kAvx512Bf16 ? &kAvx512Bf16Tile : nullptr; }

}  // namespace millrace::kernels
