#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

class Lion : public Optimizer {
 public:
  explicit Lion(const v1::OptimizerSpec& spec)
      : lr_(spec.lr()), beta1_(spec.betas(0)), beta2_(spec.betas(1)), decay_(spec.weight_decay()) {}
  int64_t StateSize(const Piece& piece) const override { return piece.size; }

  // w = (1 - lr decay) w - lr sign(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g
  void Update(const kernels::Compute&, const Piece& piece, uint64_t, double factor, const float* gradient,
              float* weights, float* m) const override {
    const kernels::FlushDenormals flush;
    const auto b1 = static_cast<float>(beta1_), rest1 = static_cast<float>(1.0 - beta1_);
    const auto b2 = static_cast<float>(beta2_), rest2 = static_cast<float>(1.0 - beta2_);
    const auto rate = static_cast<float>(lr_ * factor);
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr_ * factor * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) {
      const float direction = b1 * m[i] + rest1 * gradient[i];
      const float sign = direction > 0 ? 1.0f : direction < 0 ? -1.0f : 0.0f;
      weights[i] = keep * weights[i] - rate * sign;
      m[i] = b2 * m[i] + rest2 * gradient[i];
    }
  }

 private:
  const double lr_, beta1_, beta2_, decay_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateLion(const v1::OptimizerSpec& spec) { return std::make_unique<Lion>(spec); }

}  // namespace millrace::optim
