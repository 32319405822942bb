#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/functions.h"
#include "kernels/reduce.h"
#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

constexpr float kTiny = 1e-30f;       // the paper's epsilon 1
constexpr double kLargestRms = 1.0;   // its clipping threshold d

class Adafactor : public Optimizer {
 public:
  explicit Adafactor(const v1::OptimizerSpec& spec) : lr_(spec.lr()), decay_(spec.weight_decay()) {}

  bool needs_whole_matrices() const override { return true; }
  int64_t StateSize(const Piece& piece) const override {
    return piece.whole_matrix() && piece.rows + piece.columns <= piece.size ? piece.rows + piece.columns : piece.size;
  }

  void Update(const kernels::Compute&, const Piece& piece, uint64_t step, double factor, const float* gradient,
              float* weights, float* state) const override {
    const kernels::FlushDenormals flush;
    const double decay = 1.0 - kernels::ExpInF64(-0.8 * kernels::LogInF64(static_cast<double>(step)));
    const auto keep_old = static_cast<float>(decay), rest = static_cast<float>(1.0 - decay);
    std::vector<float> update(static_cast<size_t>(piece.size));
    if (StateSize(piece) == piece.size) {
      for (int64_t i = 0; i < piece.size; ++i) {
        state[i] = keep_old * state[i] + rest * (gradient[i] * gradient[i] + kTiny);
        update[static_cast<size_t>(i)] = gradient[i] / std::sqrt(state[i]);
      }
    } else {
      Factored(piece, keep_old, rest, gradient, state, &update);
    }
    const double rms = std::sqrt(kernels::SumSquaresInF64(update.data(), piece.size) / static_cast<double>(piece.size));
    const auto rate = static_cast<float>(lr_ * factor / std::max(1.0, rms / kLargestRms));
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr_ * factor * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) {
      weights[i] = keep * weights[i] - rate * update[static_cast<size_t>(i)];
    }
  }

 private:
  // V[i, j] = R[i] C[j] / mean(R), with R and C the decayed means of g² over rows and columns.
  void Factored(const Piece& piece, float keep_old, float rest, const float* gradient, float* state,
                std::vector<float>* update) const {
    float* const of_row = state;
    float* const of_column = state + piece.rows;
    std::vector<float> column_sums(static_cast<size_t>(piece.columns), 0.0f);
    for (int64_t i = 0; i < piece.rows; ++i) {
      const float* const g = gradient + i * piece.columns;
      const float mean = kernels::SumSquares(g, piece.columns) / static_cast<float>(piece.columns);
      of_row[i] = keep_old * of_row[i] + rest * (mean + kTiny);
      for (int64_t j = 0; j < piece.columns; ++j) column_sums[static_cast<size_t>(j)] += g[j] * g[j];
    }
    for (int64_t j = 0; j < piece.columns; ++j) {
      const float mean = column_sums[static_cast<size_t>(j)] / static_cast<float>(piece.rows);
      of_column[j] = keep_old * of_column[j] + rest * (mean + kTiny);
    }
    const auto mean_row = static_cast<float>(kernels::SumInF64(of_row, piece.rows) / static_cast<double>(piece.rows));
    for (int64_t i = 0; i < piece.rows; ++i) {
      // Not the root of the quotient: that may be too small for a float, of rows without gradient beside large ones.
      const float row_scale = std::sqrt(mean_row) / std::sqrt(of_row[i]);
      for (int64_t j = 0; j < piece.columns; ++j) {
        const int64_t at = i * piece.columns + j;
        (*update)[static_cast<size_t>(at)] = gradient[at] * row_scale / std::sqrt(of_column[j]);
      }
    }
  }

  const double lr_, decay_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateAdafactor(const v1::OptimizerSpec& spec) { return std::make_unique<Adafactor>(spec); }

}  // namespace millrace::optim
