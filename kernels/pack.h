// Lays operands out for tiles (kernels/tile.h), rounding them to bfloat16 where a product wants it.
#pragma once

#include <cstdint>

namespace millrace::kernels {

// How units of 32 bits hold the elements of a line, k after k.
enum class Packing {
  kPlain,    // f32, in order
  kWidened,  // f32 that were rounded to bfloat16, the odd of each pair first; an odd k is filled up with a zero
  kPairs,    // two bfloat16, the even k in the lower half; an odd k is filled up with a zero
};

constexpr int64_t DivideUp(int64_t value, int64_t by) { return (value + by - 1) / by; }
constexpr int64_t RoundUp(int64_t value, int64_t multiple) { return DivideUp(value, multiple) * multiple; }

constexpr int64_t ElementsOfUnit(Packing packing) { return packing == Packing::kPairs ? 2 : 1; }
// Units of k elements.
constexpr int64_t UnitsOf(Packing packing, int64_t k) {
  return packing == Packing::kPlain ? k : packing == Packing::kWidened ? RoundUp(k, 2) : (k + 1) / 2;
}

struct Packer {
  Packing packing;
  // Packs `width` lines (rows of A or columns of B; `lines` of them are there, the rest zeros), a multiple of 8, over k
  // elements: line l, element p is source[l * line_stride + p * k_stride], one of the strides being 1. The panel,
  // [units][width], is aligned to 32 bytes.
  void (*panel)(const float* source, int64_t line_stride, int64_t k_stride, int64_t lines, int64_t width, int64_t k,
                float* panel);
  // Copies rows whose elements lie side by side, `to_stride` units apart, a multiple of 16.
  void (*rows)(const float* source, int64_t row_stride, int64_t rows, int64_t k, float* to, int64_t to_stride);
};

extern const Packer kPlainPacker;
extern const Packer kWidenedPacker;
// For processors that have the instructions.
extern const Packer kPairsPacker;

// Compares the processor's conversion with `round`. Requires that the processor has it.
bool Bf16ConversionIsAsDefined(uint16_t (*round)(float));

}  // namespace millrace::kernels
