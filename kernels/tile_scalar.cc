#include <cmath>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = 4;

void ComputeTile(int64_t k, const void* a_panel, const void* b_panel, float* c, int64_t c_stride, bool zero) {
  const auto* a = static_cast<const float*>(a_panel);
  const auto* b = static_cast<const float*>(b_panel);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float chain = zero ? 0.0f : c[i * c_stride + j];
      for (int64_t p = 0; p < k; ++p) chain = std::fma(a[p * kRows + i], b[p * kColumns + j], chain);
      c[i * c_stride + j] = chain;
    }
  }
}

}  // namespace

const Tile kScalarTile = {kRows, kColumns, &ComputeTile};

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
