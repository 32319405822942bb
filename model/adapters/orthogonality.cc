#include "model/adapters/orthogonality.h"

#include <cmath>
#include <vector>

#include "kernels/product.h"
#include "kernels/reduce.h"

namespace millrace::model {
namespace {

// Of a matrix X whose `rank` rows are to be orthonormal: A, or Bᵀ. |X Xᵀ - I| has the gradient 2 (X Xᵀ - I) X / |X Xᵀ -
// I|, of which `scale` times is added to `gradient`, which lies as `of_columns` says: X, or Xᵀ.
double AddOf(const kernels::Compute& compute, const TensorSpec& tensor, bool of_columns, double scale,
             const float* weights, float* gradient) {
  const int64_t rank = tensor.shape[of_columns ? 1 : 0], width = tensor.size / rank;
  const kernels::Operand stored = {weights, tensor.shape[1], 1};
  const kernels::Operand x = of_columns ? stored.Transposed() : stored;
  std::vector<float> off(static_cast<size_t>(rank * rank));
  kernels::Product gram;
  gram.m = gram.n = rank;
  gram.k = width;
  gram.a = x;
  gram.b = x.Transposed();
  gram.c = off.data();
  gram.c_stride = rank;
  kernels::Multiply(compute, gram);
  for (int64_t i = 0; i < rank; ++i) off[static_cast<size_t>(i * rank + i)] -= 1.0f;
  const double norm = std::sqrt(kernels::SumSquaresInF64(off.data(), rank * rank));
  if (norm == 0) return 0;
  const auto factor = static_cast<float>(2.0 * scale / norm);
  for (float& value : off) value *= factor;
  // `off` is symmetric, so that for columns the product may be taken from the right.
  const kernels::Operand symmetric = {off.data(), rank, 1};
  kernels::Product product;
  product.m = tensor.shape[0];
  product.n = tensor.shape[1];
  product.k = rank;
  product.a = of_columns ? stored : symmetric;
  product.b = of_columns ? symmetric : stored;
  product.c = gradient;
  product.c_stride = tensor.shape[1];
  product.accumulate = true;
  kernels::Multiply(compute, product);
  return norm;
}

}  // namespace

double AddOrthogonality(const kernels::Compute& compute, const Adapter& adapter, uint32_t group, double scale,
                        const float* weights, float* gradients) {
  const auto triplets = adapter.triplets();
  const auto matrices = static_cast<double>(2 * triplets.size());
  double sum = 0;
  for (const Adapter::AtLinear* const at : triplets) {
    for (const int index : {at->a, at->b}) {
      const TensorSpec& tensor = adapter.tensors()[index];
      if (tensor.group != group) continue;
      sum +=
          AddOf(compute, tensor, index == at->b, scale / matrices, weights + tensor.offset, gradients + tensor.offset);
    }
  }
  return sum / matrices;
}

}  // namespace millrace::model
