// Multiplies matrices; each element of the result is one chain of fused multiply-adds in a defined order, so that its
// bits depend on the operands alone (docs/arithmetic.md).
//
//   f32:   c = 0, then for k = 0, 1, …: c = fma(a[i,k], b[k,j], c)
//   bf16:  operands are rounded to bfloat16, to nearest even, denormals to zero; K is made even with a zero; then for
//          each pair k, k+1:  c = fma(a[i,k+1], b[k+1,j], c);  c = fma(a[i,k], b[k,j], c)
//   then   c += bias[j] if there is one
//
// Denormals are zeros throughout.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/compute.h"

namespace millrace::kernels {

enum class Precision { kF32, kBf16 };

// A matrix in memory: element (i, j) is data[i * row_stride + j * column_stride]. One of the strides is 1.
struct Operand {
  const float* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  Operand Transposed() const { return {data, column_stride, row_stride}; }
};

// c[m, n] = a[m, k] * b[k, n].
struct Product {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  Operand a;
  Operand b;
  float* c = nullptr;
  int64_t c_stride = 0;         // between rows
  bool accumulate = false;      // the chains start from what c holds instead of zero
  const float* bias = nullptr;  // [n]
  Precision precision = Precision::kF32;
};

// Requires that c overlaps neither operand.
void Multiply(const Compute& compute, const Product& product);

// Products that are independent of each other, such as the heads of attention, spread over the threads.
void MultiplyBatch(const Compute& compute, absl::Span<const Product> products);

// The definition, one element after another; for tests.
void MultiplyAsDefined(const Product& product);

}  // namespace millrace::kernels
