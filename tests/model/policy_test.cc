#include "model/objectives/policy.h"

#include <cmath>
#include <functional>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::model {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Exact in f32, and so are they after a step.
constexpr float kStep = 0x1p-10f;

// Ratios above, below and within the clips, with advantages of both signs; the last one is for the dual clip.
const Floats kNow = {-1.0f, -2.0f, -0.5f, -3.0f, -1.5f, -0.25f};
const Floats kOld = {-1.25f, -1.5f, -0.5f, -3.5f, -1.0f, -2.25f};
const Floats kReference = {-1.5f, -2.5f, -0.25f, -3.0f, -1.0f, -1.0f};
const Floats kEntropies = {1.0f, 2.0f, 0.5f, 1.5f, 0.75f, 0.25f};
const Doubles kAdvantages = {1.0, -2.0, 0.5, 2.0, -1.0, -1.5};

PolicyOptions AllTerms() {
  PolicyOptions options;
  options.clip_high = 0.28;
  options.dual_clip = 3;
  options.entropy_coefficient = 0.01;
  options.kl_coefficient = 0.05;
  return options;
}

struct Result {
  double loss = 0;
  Floats d_log_probabilities, d_entropies;
  PolicyStatistics statistics;
};

Result Loss(const Floats& now, const Floats& entropies, const PolicyOptions& options, double scale = 1) {
  Result result;
  result.d_log_probabilities.resize(now.size());
  result.d_entropies.resize(now.size());
  result.loss =
      PolicyLoss({now, kOld, kAdvantages, kReference, entropies}, options, scale,
                 absl::MakeSpan(result.d_log_probabilities), absl::MakeSpan(result.d_entropies), &result.statistics);
  return result;
}

TEST(Policy, IsWhatAnotherProgramComputes) {
  const Result result = Loss(kNow, kEntropies, AllTerms());
  EXPECT_NEAR(result.loss, 2.598435527294531, 1e-13);
  EXPECT_EQ(result.statistics.loss, result.loss);
  EXPECT_EQ(result.statistics.count, 6);
  EXPECT_EQ(result.statistics.clipped, 5);
  EXPECT_NEAR(result.statistics.divergence, 4.784864105743787, 1e-13);
  EXPECT_NEAR(result.statistics.reference_divergence, 0.6181745595541512, 1e-13);
  EXPECT_EQ(result.statistics.entropy, 6);
  EXPECT_NEAR(result.statistics.ratio, 12.534864105743786, 1e-13);
}

TEST(Policy, DerivativesAreSlopes) {
  for (const int terms : {0, 1, 2}) {
    PolicyOptions options = AllTerms();
    options.kl_by_ratio = terms == 2;
    if (terms == 0) options.dual_clip = options.kl_coefficient = 0;
    const Result result = Loss(kNow, kEntropies, options, 0.25);
    const auto slope = [&](const std::function<double(float step)>& loss) {
      return 0.25 * (loss(kStep) - loss(-kStep)) / (2 * static_cast<double>(kStep));
    };
    for (size_t i = 0; i < kNow.size(); ++i) {
      EXPECT_NEAR(result.d_log_probabilities[i], slope([&](float step) {
                    Floats moved = kNow;
                    moved[i] += step;
                    return Loss(moved, kEntropies, options).loss;
                  }),
                  2e-6)
          << terms << " " << i;
      EXPECT_NEAR(result.d_entropies[i], slope([&](float step) {
                    Floats moved = kEntropies;
                    moved[i] += step;
                    return Loss(kNow, moved, options).loss;
                  }),
                  1e-9)
          << terms << " " << i;
    }
  }
}

TEST(Policy, WithoutReferenceAndEntropiesIsTheSurrogateAlone) {
  Floats derivatives(6);
  PolicyStatistics statistics;
  const double loss =
      PolicyLoss({kNow, kNow, kAdvantages, {}, {}}, {}, 1, absl::MakeSpan(derivatives), {}, &statistics);
  // On policy every ratio is 1.
  EXPECT_EQ(loss, -(1.0 - 2.0 + 0.5 + 2.0 - 1.0 - 1.5));
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(derivatives[i], static_cast<float>(-kAdvantages[i]));
  EXPECT_EQ(statistics.clipped, 0);
  EXPECT_EQ(statistics.divergence, 0);
  EXPECT_EQ(statistics.entropy, 0);
}

TEST(Policy, StaysFiniteFarOut) {
  const Floats now = {-1e4f, 0.0f}, old = {0.0f, -1e4f};
  const Doubles advantages = {-1.0, -1.0};
  Floats derivatives(2);
  PolicyStatistics statistics;
  PolicyOptions options;
  options.kl_coefficient = 1;
  EXPECT_TRUE(std::isfinite(
      PolicyLoss({now, old, advantages, old, {}}, options, 1, absl::MakeSpan(derivatives), {}, &statistics)));
  for (const float derivative : derivatives) EXPECT_TRUE(std::isfinite(derivative));
}

TEST(Policy, OfWholeResponsesIsWhatAnotherProgramComputes) {
  const std::vector<PolicyResponse> responses = {{-10.0, -10.1, 1.0}, {-12.0, -12.5, 2.0}, {-9.0, -8.0, -1.0}};
  Doubles derivatives(3), unused(3);
  PolicyStatistics statistics, other;
  EXPECT_NEAR(SequencePolicyLoss(responses, {}, 0.25, absl::MakeSpan(derivatives), &statistics), -2.7051709180756474,
              1e-13);
  EXPECT_EQ(statistics.count, 3);
  EXPECT_EQ(statistics.clipped, 2);
  const double step = 1e-6;
  for (size_t i = 0; i < responses.size(); ++i) {
    double losses[2];
    for (const int side : {0, 1}) {
      std::vector<PolicyResponse> moved = responses;
      moved[i].log_probability += side == 0 ? -step : step;
      losses[side] = SequencePolicyLoss(moved, {}, 1, absl::MakeSpan(unused), &other);
    }
    EXPECT_NEAR(derivatives[i], 0.25 * (losses[1] - losses[0]) / (2 * step), 1e-8) << i;
  }
}

TEST(Value, IsWhatAnotherProgramComputes) {
  const Floats old_values = {0.25f, 2.25f, -0.5f};
  const Doubles returns = {2.0, 1.0, 0.0};
  const auto loss = [&](const Floats& values, double clip, double scale, Floats* derivatives,
                        ValueStatistics* statistics) {
    derivatives->resize(values.size());
    return ValueLoss(values, old_values, returns, clip, scale, absl::MakeSpan(*derivatives), statistics);
  };
  const Floats values = {1.0f, 2.0f, -0.5f};
  for (const double clip : {0.5, 0.0}) {
    Floats derivatives, unused;
    ValueStatistics statistics, other;
    EXPECT_NEAR(loss(values, clip, 0.25, &derivatives, &statistics), clip > 0 ? 1.40625 : 0.5 * (1 + 1 + 0.25), 1e-15);
    EXPECT_EQ(statistics.clipped, clip > 0 ? 1 : 0);
    EXPECT_EQ(statistics.error_squares, 2.25);
    EXPECT_EQ(statistics.returns, 3);
    EXPECT_EQ(statistics.return_squares, 5);
    for (size_t i = 0; i < values.size(); ++i) {
      double losses[2];
      for (const int side : {0, 1}) {
        Floats moved = values;
        moved[i] += side == 0 ? -kStep : kStep;
        losses[side] = loss(moved, clip, 1, &unused, &other);
      }
      EXPECT_NEAR(derivatives[i], 0.25 * (losses[1] - losses[0]) / (2 * static_cast<double>(kStep)), 1e-6) << i;
    }
  }
}

}  // namespace
}  // namespace millrace::model
