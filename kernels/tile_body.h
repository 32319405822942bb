// The body of a tile that is held in registers, for the files of the instruction sets to instantiate: it compiles to
// what their flags allow, so nothing here may be linked across them (all is in an unnamed namespace).
//
// Vector: Register, Unit (what a lane of an operand is), kLanes; Zero(), Load(c), Store(c, register), LoadB(units),
// Broadcast(unit), MultiplyAdd(a, b, c).
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "kernels/tile.h"

namespace millrace::kernels {
namespace {  // NOLINT(google-build-namespaces)

// Every loop over kRows and kWide must be unrolled: arrays of registers that are not stay in memory.
template <typename Vector, int kRows, int kWide, bool kPanel>
void ComputeTile(const TileWork& work) {
  using Unit = typename Vector::Unit;
  // By value: stores to c might change what a reference refers to.
  const int64_t steps = work.steps, stride = work.a_stride, b_stride = work.b_stride, c_stride = work.c_stride;
  float* const to = work.c;
  const bool zero = work.zero;
  typename Vector::Register c[kRows][kWide];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    // Stores wait for lines that are not in the cache: ask for them before the chains are computed.
    __builtin_prefetch(to + i * c_stride, 1);
    if (kWide == 2) __builtin_prefetch(to + i * c_stride + Vector::kLanes, 1);
    __builtin_prefetch(to + i * c_stride + kWide * Vector::kLanes - 1, 1);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kWide; ++j) {
      c[i][j] = zero ? Vector::Zero() : Vector::Load(to + i * c_stride + j * Vector::kLanes);
    }
  }
  // Three rows share a pointer: addresses with once and twice the stride cost nothing.
  constexpr int kBases = (kRows + 2) / 3;
  const Unit* a[kBases];
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) a[i] = static_cast<const Unit*>(work.a) + (kPanel ? 0 : 3 * i * stride);
  const Unit* b = static_cast<const Unit*>(work.b);
  for (int64_t step = 0; step < steps; ++step) {
    const auto b0 = Vector::LoadB(b);
    const auto b1 = kWide == 2 ? Vector::LoadB(b + Vector::kLanes) : b0;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const auto ai = Vector::Broadcast(kPanel ? a[0] + i : a[i / 3] + i % 3 * stride);
      c[i][0] = Vector::MultiplyAdd(ai, b0, c[i][0]);
      if (kWide == 2) c[i][kWide - 1] = Vector::MultiplyAdd(ai, b1, c[i][kWide - 1]);
    }
    if (kPanel) {
      a[0] += stride;
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) ++a[i];
    }
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kWide; ++j) Vector::Store(to + i * c_stride + j * Vector::kLanes, c[i][j]);
  }
}

template <typename Vector, int kRows, int... kIndex>
constexpr std::array<TileFunction, 4 * (kRows + 1)> TileFunctionsOf(std::integer_sequence<int, kIndex...>) {
  return {
      nullptr, &ComputeTile<Vector, kIndex + 1, 2, false>..., nullptr, &ComputeTile<Vector, kIndex + 1, 1, false>...,
      nullptr, &ComputeTile<Vector, kIndex + 1, 2, true>...,  nullptr, &ComputeTile<Vector, kIndex + 1, 1, true>...};
}

// For tiles of up to kRows rows and two registers.
template <typename Vector, int kRows>
constexpr std::array<TileFunction, 4 * (kRows + 1)> TileFunctions() {
  return TileFunctionsOf<Vector, kRows>(std::make_integer_sequence<int, kRows>());
}

}  // namespace
}  // namespace millrace::kernels
