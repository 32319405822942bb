// Products at the shapes of the models, by our kernels and by oneDNN.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/models.h"
#include "kernels/compute.h"
#include "kernels/product.h"

namespace millrace::bench {

// `batch` products c[m, n] = a[m, k] b[k, n], one behind another in memory.
struct Shape {
  std::string name;  // "10.8M/mlp-up/forward"
  int64_t batch = 1;
  int64_t m = 0, n = 0, k = 0;
  bool a_transposed = false;  // stored [k, m]
  bool b_transposed = false;  // stored [n, k]

  double flop() const { return 2.0 * static_cast<double>(batch * m * n * k); }
};

// What training multiplies: projections with both gradients, and attention's heads.
std::vector<Shape> ShapesOf(const Model& model);

// The same operands for both.
class ProductPair {
 public:
  ProductPair(const Shape& shape, const kernels::Compute* compute);
  ~ProductPair();

  // Operands are f32 in memory, rounded on the way where `precision` says so.
  void Ours(kernels::Precision precision);
  // bf16: operands are bf16 in memory already.
  void OneDnn(kernels::Precision precision);

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

// Holds oneDNN to an instruction set and a number of threads; before its first use.
void SetUpOneDnn(kernels::Isa isa, int threads);

}  // namespace millrace::bench
