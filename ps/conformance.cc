#include "ps/conformance.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "blocks/fixed_point.h"
#include "common/checksum.h"
#include "common/philox.h"
#include "kernels/compute.h"
#include "kernels/conformance.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"

namespace millrace::ps {
namespace {

constexpr uint64_t kSteps = 4;
constexpr int64_t kRows = 19, kColumns = 45;

// Numbers of many magnitudes and both signs, with zeros and denormals among them.
std::vector<float> Numbers(uint64_t key, int64_t n) {
  const Philox philox(key);
  std::vector<float> numbers(static_cast<size_t>(n));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto words = philox(0, i);
    numbers[i] = std::ldexp(2.0f * UniformFloat(words[0]) - 1.0f, -static_cast<int>(words[1] % 12));
    if (i % 53 == 5) numbers[i] = 0x1p-130f;
    if (i % 53 == 6) numbers[i] = -0.0f;
  }
  return numbers;
}

void Add(const std::vector<float>& numbers, Sha256* sum) {
  sum->Update(numbers.data(), numbers.size() * sizeof(float));
}

v1::OptimizerSpec Spec(absl::string_view type) {
  v1::OptimizerSpec spec;
  spec.set_type(std::string(type));
  spec.set_lr(0.01);
  spec.add_betas(0.9);
  spec.add_betas(0.95);
  spec.set_epsilon(1e-8);
  spec.set_weight_decay(0.1);
  spec.set_momentum(0.95);
  spec.set_nesterov(true);
  spec.set_muon_lr(0.02);
  spec.set_muon_iterations(5);
  spec.set_gradient_bits(16);
  spec.set_schedule("cosine");
  return spec;
}

void AddSteps(const kernels::Compute& compute, const optim::Optimizer& optimizer, const optim::Piece& piece,
              Sha256* sum) {
  std::vector<float> weights = Numbers(1, piece.size);
  std::vector<float> state(static_cast<size_t>(optimizer.StateSize(piece)), 0.0f);
  for (uint64_t step = 1; step <= kSteps; ++step) {
    optimizer.Update(compute, piece, step, 1.0 / static_cast<double>(step), Numbers(1 + step, piece.size).data(),
                     weights.data(), state.data());
  }
  Add(weights, sum);
  Add(state, sum);
}

void AddOptimizers(const kernels::Compute& compute, Sha256* sum) {
  optim::Piece block, tall, wide;
  block.size = tall.size = wide.size = kRows * kColumns;
  tall.role = wide.role = v1::Tensor::MATRIX;
  block.decays = tall.decays = true;
  tall.rows = wide.columns = kColumns;
  tall.columns = wide.rows = kRows;
  wide.rows_are_inputs = true;
  for (const char* type : {"sgd", "momentum", "adamw", "adafactor", "lion", "muon"}) {
    const auto optimizer = optim::CreateOptimizer(Spec(type));
    if (!optimizer.ok()) {
      sum->Update(optimizer.status().message());
      continue;
    }
    AddSteps(compute, **optimizer, block, sum);
    if (!(*optimizer)->needs_whole_matrices()) continue;
    AddSteps(compute, **optimizer, tall, sum);
    AddSteps(compute, **optimizer, wide, sum);
  }
}

void AddSchedules(Sha256* sum) {
  for (const char* schedule : {"constant", "cosine", "linear", "wsd"}) {
    v1::OptimizerSpec spec = Spec("adamw");
    spec.set_schedule(schedule);
    spec.set_warmup_steps(7);
    spec.set_min_lr_ratio(0.1);
    spec.set_decay_fraction(0.2);
    for (const uint64_t step : {1, 7, 8, 30, 50, 81, 99, 100, 101}) {
      const double factor = optim::ScheduleFactor(spec, step, 100);
      sum->Update(&factor, sizeof(factor));
    }
  }
}

// Codes, adds and decodes, each coding following from the one before.
void AddCodings(Sha256* sum) {
  const kernels::FlushDenormals flush;
  for (const uint32_t bits : {16u, 32u}) {
    blocks::Coding coding;
    for (uint64_t step = 0; step < kSteps; ++step) {
      std::vector<int64_t> sums(1000, 0);
      for (uint64_t unit = 0; unit < 3; ++unit) {
        std::string coded;
        const auto clipped =
            blocks::Encode(Numbers(100 + 10 * step + unit, static_cast<int64_t>(sums.size())), coding, &coded);
        if (!clipped.ok() || !blocks::AddTo(coded, coding, absl::MakeSpan(sums)).ok()) sum->Update("wrong");
        sum->Update(coded);
      }
      std::vector<float> decoded;
      uint64_t largest = 0;
      for (const int64_t value : sums) {
        decoded.push_back(blocks::Decode(value, coding));
        largest = std::max(largest, static_cast<uint64_t>(value < 0 ? -value : value));
      }
      Add(decoded, sum);
      coding = blocks::NextCoding(coding, largest, bits);
      sum->Update(&coding.exponent, sizeof(coding.exponent));
    }
  }
}

}  // namespace

std::string ConformanceDigest() {
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  Sha256 sum;
  kernels::AddConformance(compute, &sum);
  AddOptimizers(compute, &sum);
  AddSchedules(&sum);
  AddCodings(&sum);
  return sum.HexDigest();
}

}  // namespace millrace::ps
