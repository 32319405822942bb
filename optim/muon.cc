#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/product.h"
#include "kernels/reduce.h"
#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

using kernels::Operand;
using kernels::Product;

// Drives the singular values of x [rows, columns] towards 1 by `iterations` of
//   x = a x + (b s + c s²) x,  s = x xᵀ
// after scaling them below 1. Works on the shorter side: for rows > columns, on xᵀ, with the same result.
void Orthogonalize(const kernels::Compute& compute, int64_t rows, int64_t columns, uint32_t iterations,
                   std::vector<float>* matrix) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  std::vector<float>& x = *matrix;
  const auto scale = static_cast<float>(
      1.0 / (std::sqrt(kernels::SumSquaresInF64(x.data(), static_cast<int64_t>(x.size()))) + 1e-7));
  for (float& value : x) value *= scale;

  const bool tall = rows > columns;
  const int64_t side = std::min(rows, columns), length = std::max(rows, columns);
  std::vector<float> next(x.size()), s(static_cast<size_t>(side * side)), polynomial(s.size());
  for (uint32_t i = 0; i < iterations; ++i) {
    const Operand stored = {x.data(), columns, 1};
    // [side, length]
    const Operand wide = tall ? stored.Transposed() : stored;
    Product square = {.m = side, .n = side, .k = length, .a = wide, .b = wide.Transposed(), .c = s.data(), .c_stride = side};
    kernels::Multiply(compute, square);
    Product fourth = {.m = side, .n = side, .k = side, .a = {s.data(), side, 1}, .b = {s.data(), side, 1},
                      .c = polynomial.data(), .c_stride = side};
    kernels::Multiply(compute, fourth);
    for (size_t j = 0; j < s.size(); ++j) polynomial[j] = kB * s[j] + kC * polynomial[j];
    // next starts from a x; polynomial is symmetric, so that for tall x the product may be taken from the right.
    for (size_t j = 0; j < x.size(); ++j) next[j] = kA * x[j];
    const Operand p = {polynomial.data(), side, 1};
    Product product = {.m = rows, .n = columns, .k = side, .a = tall ? stored : p, .b = tall ? p : stored,
                       .c = next.data(), .c_stride = columns, .accumulate = true};
    kernels::Multiply(compute, product);
    std::swap(x, next);
  }
}

class Muon : public Optimizer {
 public:
  explicit Muon(const v1::OptimizerSpec& spec)
      : lr_(spec.muon_lr()), momentum_(static_cast<float>(spec.momentum())), nesterov_(spec.nesterov()),
        iterations_(spec.muon_iterations()), decay_(spec.weight_decay()), rest_(CreateAdamW(spec)) {}

  bool needs_whole_matrices() const override { return true; }
  int64_t StateSize(const Piece& piece) const override {
    return piece.whole_matrix() ? piece.size : rest_->StateSize(piece);
  }

  void Update(const kernels::Compute& compute, const Piece& piece, uint64_t step, double factor,
              const float* gradient, float* weights, float* state) const override {
    if (!piece.whole_matrix()) return rest_->Update(compute, piece, step, factor, gradient, weights, state);
    const kernels::FlushDenormals flush;
    std::vector<float> update(static_cast<size_t>(piece.size));
    for (int64_t i = 0; i < piece.size; ++i) {
      state[i] = momentum_ * state[i] + gradient[i];
      update[static_cast<size_t>(i)] = nesterov_ ? gradient[i] + momentum_ * state[i] : state[i];
    }
    Orthogonalize(compute, piece.rows, piece.columns, iterations_, &update);
    const auto outputs = static_cast<double>(piece.rows_are_inputs ? piece.columns : piece.rows);
    const auto inputs = static_cast<double>(piece.rows_are_inputs ? piece.rows : piece.columns);
    const auto rate = static_cast<float>(lr_ * factor * std::sqrt(std::max(1.0, outputs / inputs)));
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr_ * factor * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) {
      weights[i] = keep * weights[i] - rate * update[static_cast<size_t>(i)];
    }
  }

 private:
  const double lr_;
  const float momentum_;
  const bool nesterov_;
  const uint32_t iterations_;
  const double decay_;
  const std::unique_ptr<Optimizer> rest_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateMuon(const v1::OptimizerSpec& spec) { return std::make_unique<Muon>(spec); }

}  // namespace millrace::optim
