#include "optim/optimizer.h"

namespace millrace::optim {
namespace {

class Sgd : public Optimizer {
 public:
  explicit Sgd(const v1::OptimizerSpec& spec) : lr_(spec.lr()), decay_(spec.weight_decay()) {}
  int64_t StateSize(const Piece&) const override { return 0; }
  void Update(const kernels::Compute&, const Piece& piece, uint64_t, double factor, const float* gradient,
              float* weights, float*) const override {
    const kernels::FlushDenormals flush;
    const auto rate = static_cast<float>(lr_ * factor);
    const auto keep = static_cast<float>(piece.decays ? 1.0 - lr_ * factor * decay_ : 1.0);
    for (int64_t i = 0; i < piece.size; ++i) weights[i] = keep * weights[i] - rate * gradient[i];
  }

 private:
  const double lr_, decay_;
};

}  // namespace

std::unique_ptr<Optimizer> CreateSgd(const v1::OptimizerSpec& spec) { return std::make_unique<Sgd>(spec); }

}  // namespace millrace::optim
