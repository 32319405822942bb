#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

class Momentum : public Optimizer {
 public:
  explicit Momentum(const v1::OptimizerSpec& spec)
      : lr_(spec.lr()), momentum_(static_cast<float>(spec.momentum())), nesterov_(spec.nesterov()),
        decay_(spec.weight_decay()) {}
  int64_t StateSize(const Piece& piece) const override { return piece.size; }
  void Update(const kernels::Compute&, const Piece& piece, uint64_t, double factor, const float* gradient,
              float* weights, float* velocity) const override {
    const kernels::FlushDenormals flush;
    const auto rate = static_cast<float>(lr_ * factor);
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr_ * factor * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) {
      velocity[i] = momentum_ * velocity[i] + gradient[i];
      const float direction = nesterov_ ? gradient[i] + momentum_ * velocity[i] : velocity[i];
      weights[i] = keep * weights[i] - rate * direction;
    }
  }

 private:
  const double lr_;
  const float momentum_;
  const bool nesterov_;
  const double decay_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateMomentum(const v1::OptimizerSpec& spec) { return std::make_unique<Momentum>(spec); }

}  // namespace millrace::optim
