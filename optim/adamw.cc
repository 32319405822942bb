#include <cmath>

#include "kernels/functions.h"
#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

class AdamW : public Optimizer {
 public:
  explicit AdamW(const v1::OptimizerSpec& spec)
      : lr_(spec.lr()), beta1_(spec.betas(0)), beta2_(spec.betas(1)), epsilon_(static_cast<float>(spec.epsilon())),
        decay_(spec.weight_decay()) {}

  int64_t StateSize(const Piece& piece) const override { return 2 * piece.size; }

  // m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²
  // w = (1 - lr decay) w - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
  void Update(const kernels::Compute&, const Piece& piece, uint64_t step, double factor, const float* gradient,
              float* weights, float* state) const override {
    const kernels::FlushDenormals flush;
    float* const m = state;
    float* const v = state + piece.size;
    const double lr = lr_ * factor;
    const auto b1 = static_cast<float>(beta1_), rest1 = static_cast<float>(1.0 - beta1_);
    const auto b2 = static_cast<float>(beta2_), rest2 = static_cast<float>(1.0 - beta2_);
    const auto rate = static_cast<float>(lr / (1.0 - kernels::PowInF64(beta1_, step)));
    const auto scale = static_cast<float>(1.0 / std::sqrt(1.0 - kernels::PowInF64(beta2_, step)));
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) {
      const float g = gradient[i];
      m[i] = b1 * m[i] + rest1 * g;
      v[i] = b2 * v[i] + rest2 * (g * g);
      weights[i] = keep * weights[i] - rate * (m[i] / (std::sqrt(v[i]) * scale + epsilon_));
    }
  }

 private:
  const double lr_, beta1_, beta2_;
  const float epsilon_;
  const double decay_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateAdamW(const v1::OptimizerSpec& spec) { return std::make_unique<AdamW>(spec); }

}  // namespace millrace::optim
