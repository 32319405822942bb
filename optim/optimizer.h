// Turns gradients into changes of weights. One optimizer a file.
//
// Everything is elementwise f32 code, products by kernels/ and sums in a defined order: the same bits on every
// processor. Scalars such as bias corrections are computed in f64 and rounded once.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/compute.h"
#include "proto/millrace/v1/job.pb.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::optim {

// What is updated together: a block, or a whole matrix for optimizers that need it.
struct Piece {
  int64_t size = 0;              // elements
  v1::Tensor::Role role = v1::Tensor::VECTOR;
  bool decays = false;           // weight decay applies: the tensor has two or more dimensions
  // Of a whole matrix: [rows, columns] as it lies in memory; 0 for blocks.
  int64_t rows = 0;
  int64_t columns = 0;
  bool rows_are_inputs = false;  // as stored, [inputs, outputs]

  bool whole_matrix() const { return rows > 0; }
};

// Constant: any thread.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // Tensors of role MATRIX come as whole matrices.
  virtual bool needs_whole_matrices() const { return false; }
  // f32 values of state that a piece has; zeros at the start. At most size for a whole matrix.
  virtual int64_t StateSize(const Piece& piece) const = 0;
  // Applies step `step` = 1, 2, …, `factor` being the schedule's.
  virtual void Update(const kernels::Compute& compute, const Piece& piece, uint64_t step, double factor,
                      const float* gradient, float* weights, float* state) const = 0;
};

// INVALID_ARGUMENT names what is wrong with a spec, which must have its defaults: no such optimizer or schedule, or a
// field out of its bounds.
absl::StatusOr<std::unique_ptr<Optimizer>> CreateOptimizer(const v1::OptimizerSpec& spec);

// w -= lr g.
std::unique_ptr<Optimizer> CreateSgd(const v1::OptimizerSpec& spec);
// v = momentum v + g; w -= lr v, or with Nesterov's look-ahead w -= lr (g + momentum v).
std::unique_ptr<Optimizer> CreateMomentum(const v1::OptimizerSpec& spec);
// Loshchilov and Hutter 2019. State: first moments, then second moments.
std::unique_ptr<Optimizer> CreateAdamW(const v1::OptimizerSpec& spec);
// Shazeer and Stern 2018, with a given learning rate, no momentum, and decay 1 - step^-0.8 of the second moments. State:
// row sums then column sums for a whole matrix; second moments for a block, whose update is clipped block by block where
// the paper clips tensor by tensor.
std::unique_ptr<Optimizer> CreateAdafactor(const v1::OptimizerSpec& spec);
// Chen et al. 2023. State: momentum.
std::unique_ptr<Optimizer> CreateLion(const v1::OptimizerSpec& spec);
// Jordan et al. 2024: the momentum of a matrix is made nearly orthogonal by Newton-Schulz iterations; its update is
// scaled by sqrt(max(1, outputs / inputs)). AdamW for whatever is no matrix. State: momentum, or AdamW's.
std::unique_ptr<Optimizer> CreateMuon(const v1::OptimizerSpec& spec);

}  // namespace millrace::optim
