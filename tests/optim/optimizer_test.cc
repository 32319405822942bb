#include "optim/optimizer.h"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::optim {
namespace {

using ::testing::HasSubstr;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr uint64_t kSteps = 6;

v1::OptimizerSpec Spec(const std::string& type) {
  v1::OptimizerSpec spec;
  spec.set_type(type);
  spec.set_lr(0.02);
  spec.add_betas(0.9);
  spec.add_betas(0.97);
  spec.set_epsilon(1e-6);
  spec.set_weight_decay(0.3);
  spec.set_momentum(0.8);
  spec.set_nesterov(true);
  spec.set_muon_lr(0.05);
  spec.set_muon_iterations(5);
  spec.set_schedule("constant");
  spec.set_gradient_bits(16);
  return spec;
}

std::unique_ptr<Optimizer> Create(const v1::OptimizerSpec& spec) {
  auto optimizer = CreateOptimizer(spec);
  EXPECT_OK(optimizer);
  return *std::move(optimizer);
}

std::vector<float> Numbers(uint64_t key, int64_t n, float scale) {
  std::vector<float> numbers(static_cast<size_t>(n));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = scale * (2.0f * UniformFloat(Philox(key)(0, i)[0]) - 1.0f);
  return numbers;
}

std::vector<double> Wide(const std::vector<float>& numbers) { return {numbers.begin(), numbers.end()}; }

Piece BlockOf(int64_t size, bool decays = true) {
  Piece piece;
  piece.size = size;
  piece.decays = decays;
  return piece;
}

Piece MatrixOf(int64_t rows, int64_t columns, bool rows_are_inputs = false) {
  Piece piece = BlockOf(rows * columns);
  piece.role = v1::Tensor::MATRIX;
  piece.rows = rows;
  piece.columns = columns;
  piece.rows_are_inputs = rows_are_inputs;
  return piece;
}

// Gradients whose size changes from step to step.
std::vector<float> Gradient(uint64_t step, int64_t size) {
  return Numbers(100 + step, size, step % 2 == 0 ? 0.5f : 0.02f);
}
double Factor(uint64_t step) { return 1.0 / static_cast<double>(step + 1); }

class Trained {
 public:
  Trained(const v1::OptimizerSpec& spec, const Piece& piece, int threads = 1, kernels::Isa isa = kernels::DetectIsa())
      : piece(piece), optimizer_(Create(spec)), compute_(isa, threads) {
    weights = Numbers(1, piece.size, 1.0f);
    state.assign(static_cast<size_t>(optimizer_->StateSize(piece)), 0.0f);
  }
  void Step(uint64_t step, const std::vector<float>& gradient) {
    optimizer_->Update(compute_, piece, step, Factor(step), gradient.data(), weights.data(), state.data());
  }
  void Steps() {
    for (uint64_t step = 1; step <= kSteps; ++step) Step(step, Gradient(step, piece.size));
  }

  const Piece piece;
  std::vector<float> weights, state;

 private:
  const std::unique_ptr<Optimizer> optimizer_;
  const kernels::Compute compute_;
};

// Steps a block and a plain f64 update of one element after another, side by side.
void ExpectSteps(const v1::OptimizerSpec& spec, bool decays,
                 const std::function<void(uint64_t step, double lr, double g, double& w, double* state)>& update) {
  constexpr int64_t kSize = 77;
  Trained trained(spec, BlockOf(kSize, decays));
  std::vector<double> weights = Wide(trained.weights);
  std::vector<std::array<double, 2>> state(kSize, {0, 0});
  for (uint64_t step = 1; step <= kSteps; ++step) {
    const std::vector<float> gradient = Gradient(step, kSize);
    trained.Step(step, gradient);
    for (size_t i = 0; i < kSize; ++i) {
      update(step, spec.lr() * Factor(step), gradient[i], weights[i], state[i].data());
      ASSERT_NEAR(trained.weights[i], weights[i], 2e-6) << "step " << step << ", element " << i;
    }
  }
}

double Decayed(const v1::OptimizerSpec& spec, bool decays, double lr, double w) {
  return decays ? w - lr * spec.weight_decay() * w : w;
}

TEST(Optimizer, SgdEqualsThePlainOne) {
  const v1::OptimizerSpec spec = Spec("sgd");
  for (const bool decays : {false, true}) {
    ExpectSteps(spec, decays,
                [&](uint64_t, double lr, double g, double& w, double*) { w = Decayed(spec, decays, lr, w) - lr * g; });
  }
  EXPECT_EQ(Create(spec)->StateSize(BlockOf(10)), 0);
}

TEST(Optimizer, MomentumEqualsThePlainOne) {
  for (const bool nesterov : {false, true}) {
    v1::OptimizerSpec spec = Spec("momentum");
    spec.set_nesterov(nesterov);
    ExpectSteps(spec, true, [&](uint64_t, double lr, double g, double& w, double* velocity) {
      *velocity = 0.8 * *velocity + g;
      w = Decayed(spec, true, lr, w) - lr * (nesterov ? g + 0.8 * *velocity : *velocity);
    });
  }
}

// Algorithm 2 of the paper, with the schedule's factor on the decay too, as there.
TEST(Optimizer, AdamWEqualsThePlainOne) {
  const v1::OptimizerSpec spec = Spec("adamw");
  for (const bool decays : {false, true}) {
    ExpectSteps(spec, decays, [&](uint64_t step, double lr, double g, double& w, double* moments) {
      moments[0] = 0.9 * moments[0] + 0.1 * g;
      moments[1] = 0.97 * moments[1] + 0.03 * g * g;
      const auto t = static_cast<double>(step);
      const double first = moments[0] / (1 - std::pow(0.9, t)), second = moments[1] / (1 - std::pow(0.97, t));
      w = Decayed(spec, decays, lr, w) - lr * first / (std::sqrt(second) + 1e-6);
    });
  }
  EXPECT_EQ(Create(spec)->StateSize(BlockOf(10)), 20);
}

// Algorithm 2 of "Symbolic discovery of optimization algorithms".
TEST(Optimizer, LionEqualsThePlainOne) {
  const v1::OptimizerSpec spec = Spec("lion");
  ExpectSteps(spec, true, [&](uint64_t, double lr, double g, double& w, double* momentum) {
    const double direction = 0.9 * *momentum + 0.1 * g;
    w = Decayed(spec, true, lr, w) - lr * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
    *momentum = 0.97 * *momentum + 0.03 * g;
  });
}

TEST(Optimizer, LionLeavesAloneWhatHasNoGradient) {
  Trained trained(Spec("lion"), BlockOf(3, /*decays=*/false));
  const std::vector<float> before = trained.weights;
  trained.Step(1, {0, -0.0f, 0});
  EXPECT_EQ(trained.weights, before);
}

// The paper's algorithms 4 (matrices) and 5 (vectors), with rows R and columns C as sums, V = R C / sum(R).
TEST(Optimizer, AdafactorEqualsThePlainOne) {
  const v1::OptimizerSpec spec = Spec("adafactor");
  const struct {
    int64_t rows, columns;
    bool whole;
  } cases[] = {{13, 40, true}, {40, 13, true}, {1, 30, true}, {1, 1, true}, {1, 50, false}};
  for (const auto& [rows, columns, whole] : cases) {
    Trained trained(spec, whole ? MatrixOf(rows, columns) : BlockOf(rows * columns));
    const bool factored = whole && rows + columns <= rows * columns;
    EXPECT_EQ(static_cast<int64_t>(trained.state.size()), factored ? rows + columns : rows * columns);
    EXPECT_LE(static_cast<int64_t>(trained.state.size()), rows * columns);
    Matrix w = Eigen::Map<const Matrix>(Wide(trained.weights).data(), rows, columns);
    Matrix v = Matrix::Zero(rows, columns);
    Eigen::VectorXd row_sums = Eigen::VectorXd::Zero(rows), column_sums = Eigen::VectorXd::Zero(columns);
    for (uint64_t step = 1; step <= kSteps; ++step) {
      const std::vector<float> gradient = Gradient(step, rows * columns);
      trained.Step(step, gradient);
      const Matrix g = Eigen::Map<const Matrix>(Wide(gradient).data(), rows, columns);
      const double decay = 1 - std::pow(static_cast<double>(step), -0.8);
      const Matrix squares = (g.array().square() + 1e-30).matrix();
      if (factored) {
        row_sums = decay * row_sums + (1 - decay) * squares.rowwise().sum();
        column_sums = decay * column_sums + (1 - decay) * squares.colwise().sum().transpose();
        v = row_sums * column_sums.transpose() / row_sums.sum();
      } else {
        v = decay * v + (1 - decay) * squares;
      }
      Matrix update = (g.array() / v.array().sqrt()).matrix();
      const double rms = std::sqrt(update.squaredNorm() / static_cast<double>(update.size()));
      update /= std::max(1.0, rms);
      const double lr = 0.02 * Factor(step);
      w = (1 - lr * 0.3) * w - lr * update;
      for (int64_t i = 0; i < rows * columns; ++i) {
        ASSERT_NEAR(trained.weights[static_cast<size_t>(i)], w.data()[i], 3e-6)
            << rows << "x" << columns << ", step " << step << ", element " << i;
      }
    }
  }
}

TEST(Optimizer, AdafactorBearsRowsWithoutGradientBesideLargeOnes) {
  Trained trained(Spec("adafactor"), MatrixOf(4, 8));
  std::vector<float> gradient(32, 0.0f);
  std::fill(gradient.begin(), gradient.begin() + 8, 3e7f);
  for (uint64_t step = 1; step <= 3; ++step) trained.Step(step, gradient);
  for (const float weight : trained.weights) EXPECT_TRUE(std::isfinite(weight));
}

// ---- Muon ----

// What one step subtracts from the weights of a matrix, without decay and at a learning rate of 1.
Matrix MuonUpdate(const Piece& piece, const std::vector<float>& gradient) {
  v1::OptimizerSpec spec = Spec("muon");
  spec.set_muon_lr(1);
  spec.set_weight_decay(0);
  Trained trained(spec, piece);
  std::fill(trained.weights.begin(), trained.weights.end(), 0.0f);
  trained.Step(1, gradient);
  // Step's factor at 1 is 1/2.
  return -2 * Eigen::Map<const Matrix>(Wide(trained.weights).data(), piece.rows, piece.columns);
}

TEST(Muon, SingularValuesOfTheUpdateAreNearOne) {
  const struct { int64_t rows, columns; } cases[] = {{20, 60}, {60, 20}, {30, 45}, {1, 50}, {50, 1}, {1, 1}};
  for (const auto& [rows, columns] : cases) {
    for (const bool rows_are_inputs : {false, true}) {
      const Matrix update = MuonUpdate(MatrixOf(rows, columns, rows_are_inputs), Numbers(3, rows * columns, 0.01f));
      const Eigen::JacobiSVD<Matrix> svd(update);
      // Jordan's scale: more for matrices with more outputs than inputs.
      const auto outputs = static_cast<double>(rows_are_inputs ? columns : rows);
      const auto inputs = static_cast<double>(rows_are_inputs ? rows : columns);
      const double scale = std::sqrt(std::max(1.0, outputs / inputs));
      EXPECT_GT(svd.singularValues().minCoeff(), 0.65 * scale) << rows << "x" << columns;
      EXPECT_LT(svd.singularValues().maxCoeff(), 1.25 * scale) << rows << "x" << columns;
    }
  }
}

// The update keeps the gradient's singular vectors: where the matrix is U S Vᵀ it is U f(S) Vᵀ.
TEST(Muon, UpdateLiesAlongTheGradient) {
  const int64_t rows = 25, columns = 40;
  const std::vector<float> gradient = Numbers(4, rows * columns, 3.0f);
  const Matrix g = Eigen::Map<const Matrix>(Wide(gradient).data(), rows, columns);
  const Eigen::JacobiSVD<Matrix> svd(g, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Matrix inner = svd.matrixU().transpose() * MuonUpdate(MatrixOf(rows, columns), gradient) * svd.matrixV();
  const Matrix beside = inner - Matrix(inner.diagonal().asDiagonal());
  EXPECT_LT(beside.cwiseAbs().maxCoeff(), 1e-4);
  EXPECT_GT(inner.diagonal().minCoeff(), 0.6);
}

TEST(Muon, TallWideAndEitherStorageAgree) {
  const struct { int64_t outputs, inputs; } cases[] = {{24, 60}, {60, 24}, {33, 33}};
  for (const auto& [outputs, inputs] : cases) {
    const std::vector<float> gradient = Numbers(5, outputs * inputs, 0.1f);
    const Matrix g = Eigen::Map<const Matrix>(Wide(gradient).data(), outputs, inputs);
    std::vector<float> turned;
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t o = 0; o < outputs; ++o) turned.push_back(static_cast<float>(g(o, i)));
    }
    const Matrix plain = MuonUpdate(MatrixOf(outputs, inputs, /*rows_are_inputs=*/false), gradient);
    const Matrix other = MuonUpdate(MatrixOf(inputs, outputs, /*rows_are_inputs=*/true), turned);
    EXPECT_LT((plain - other.transpose()).cwiseAbs().maxCoeff(), 1e-5) << outputs << "x" << inputs;
  }
}

// Jordan's Newton-Schulz iteration in f64, with momentum and decay.
TEST(Muon, EqualsThePlainOne) {
  const v1::OptimizerSpec spec = Spec("muon");
  const struct { int64_t rows, columns; } cases[] = {{16, 48}, {48, 16}};
  for (const auto& [rows, columns] : cases) {
    Trained trained(spec, MatrixOf(rows, columns));
    Matrix w = Eigen::Map<const Matrix>(Wide(trained.weights).data(), rows, columns);
    Matrix velocity = Matrix::Zero(rows, columns);
    for (uint64_t step = 1; step <= kSteps; ++step) {
      const std::vector<float> gradient = Gradient(step, rows * columns);
      trained.Step(step, gradient);
      const Matrix g = Eigen::Map<const Matrix>(Wide(gradient).data(), rows, columns);
      velocity = 0.8 * velocity + g;
      Matrix x = g + 0.8 * velocity;
      x /= x.norm() + 1e-7;
      for (int i = 0; i < 5; ++i) {
        const Matrix a = x * x.transpose();
        x = (3.4445 * x + (-4.7750 * a + 2.0315 * a * a) * x).eval();
      }
      const double lr = 0.05 * Factor(step);
      w = (1 - lr * 0.3) * w -
          lr * std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(columns))) * x;
      for (int64_t i = 0; i < rows * columns; ++i) {
        ASSERT_NEAR(trained.weights[static_cast<size_t>(i)], w.data()[i], 2e-5) << "step " << step << ", element " << i;
      }
    }
  }
}

TEST(Muon, TrainsWhatIsNoMatrixAsAdamW) {
  Trained muon(Spec("muon"), BlockOf(50)), adamw(Spec("adamw"), BlockOf(50));
  muon.Steps();
  adamw.Steps();
  EXPECT_EQ(muon.weights, adamw.weights);
  EXPECT_EQ(muon.state, adamw.state);
}

TEST(Muon, MatrixWithoutGradientOnlyDecays) {
  Trained trained(Spec("muon"), MatrixOf(6, 9));
  const std::vector<float> before = trained.weights;
  trained.Step(1, std::vector<float>(54, 0.0f));
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_NEAR(trained.weights[i], (1 - 0.05 * 0.5 * 0.3) * static_cast<double>(before[i]), 1e-6);
  }
}

// ---- all ----

class EveryOptimizer : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Optimizers, EveryOptimizer,
                         ::testing::Values("sgd", "momentum", "adamw", "adafactor", "lion", "muon"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(EveryOptimizer, InstructionSetAndThreadsChangeNoBit) {
  for (const Piece& piece : {BlockOf(1001), MatrixOf(37, 90), MatrixOf(90, 37, true)}) {
    if (piece.whole_matrix() && !Create(Spec(GetParam()))->needs_whole_matrices()) continue;
    Trained defined(Spec(GetParam()), piece, 1, kernels::Isa::kScalar);
    defined.Steps();
    for (const auto isa : {kernels::Isa::kAvx2, kernels::Isa::kAvx512, kernels::Isa::kAvx512Bf16}) {
      if (isa > kernels::DetectIsa()) continue;
      for (const int threads : {1, 3}) {
        Trained trained(Spec(GetParam()), piece, threads, isa);
        trained.Steps();
        EXPECT_EQ(trained.weights, defined.weights);
        EXPECT_EQ(trained.state, defined.state);
      }
    }
  }
}

// So that shards that hold other blocks, or step in another order, get the same bits.
TEST_P(EveryOptimizer, PlaceInMemoryChangesNoBit) {
  const auto optimizer = Create(Spec(GetParam()));
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const Piece piece = BlockOf(123);
  Trained plain(Spec(GetParam()), piece);
  plain.Steps();
  for (const size_t offset : {1u, 3u, 7u}) {
    std::vector<float> weights(offset), state(offset + static_cast<size_t>(optimizer->StateSize(piece)), 0.0f);
    const std::vector<float> initial = Numbers(1, piece.size, 1.0f);
    weights.insert(weights.end(), initial.begin(), initial.end());
    for (uint64_t step = 1; step <= kSteps; ++step) {
      std::vector<float> gradient(offset);
      const std::vector<float> values = Gradient(step, piece.size);
      gradient.insert(gradient.end(), values.begin(), values.end());
      optimizer->Update(compute, piece, step, Factor(step), gradient.data() + offset, weights.data() + offset,
                        state.data() + offset);
    }
    EXPECT_EQ(std::vector<float>(weights.begin() + static_cast<long>(offset), weights.end()), plain.weights);
  }
}

TEST_P(EveryOptimizer, RefusesASpecOutOfItsBounds) {
  const struct {
    const char* part;
    std::function<void(v1::OptimizerSpec*)> spoil;
  } cases[] = {
      {"no optimizer 'other'", [](auto* spec) { spec->set_type("other"); }},
      {"optimizer.lr is 0", [](auto* spec) { spec->clear_lr(); }},
      {"optimizer.lr is inf", [](auto* spec) { spec->set_lr(std::numeric_limits<double>::infinity()); }},
      {"betas' count is 1", [](auto* spec) { spec->mutable_betas()->RemoveLast(); }},
      {"betas is 1", [](auto* spec) { spec->set_betas(1, 1.0); }},
      {"epsilon is 0", [](auto* spec) { spec->clear_epsilon(); }},
      {"weight_decay is -1", [](auto* spec) { spec->set_weight_decay(-1); }},
      {"momentum is nan", [](auto* spec) { spec->set_momentum(std::nan("")); }},
      {"muon_lr is 0", [](auto* spec) { spec->clear_muon_lr(); }},
      {"muon_iterations is 0", [](auto* spec) { spec->clear_muon_iterations(); }},
      {"no schedule ''", [](auto* spec) { spec->clear_schedule(); }},
      {"min_lr_ratio is 2", [](auto* spec) { spec->set_min_lr_ratio(2); }},
      {"decay_fraction is 2", [](auto* spec) { spec->set_decay_fraction(2); }},
      {"gradient_bits is 0; 16 or 32 is wanted", [](auto* spec) { spec->clear_gradient_bits(); }},
  };
  for (const auto& [part, spoil] : cases) {
    v1::OptimizerSpec spec = Spec(GetParam());
    spoil(&spec);
    const absl::Status refused = CreateOptimizer(spec).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << part << ": " << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(part));
  }
}

}  // namespace
}  // namespace millrace::optim
