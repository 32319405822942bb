#include "model/objectives/preference.h"

#include <cmath>
#include <functional>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::model {
namespace {

const std::vector<PreferencePair> kPairs = {
    {-10.0, -14.0, -11.0, -12.5, 5, 7}, {-20.5, -8.0, -19.0, -9.0, 9, 3}, {-3.0, -3.0, -3.0, -3.0, 2, 2}};

using Loss = std::function<double(absl::Span<const PreferencePair>, double scale, absl::Span<double> d_chosen,
                                  absl::Span<double> d_rejected, PreferenceStatistics*)>;

// Returns the loss of kPairs, having compared its derivatives with differences.
double Checked(const Loss& loss, PreferenceStatistics* statistics) {
  const double step = 1e-5, scale = 0.25;
  std::vector<double> d_chosen(kPairs.size()), d_rejected(kPairs.size()), unused(kPairs.size());
  const double whole = loss(kPairs, scale, absl::MakeSpan(d_chosen), absl::MakeSpan(d_rejected), statistics);
  EXPECT_EQ(statistics->loss, whole);
  EXPECT_EQ(statistics->pairs, 3);
  for (size_t i = 0; i < kPairs.size(); ++i) {
    for (const bool chosen : {true, false}) {
      double losses[2];
      for (const int side : {0, 1}) {
        std::vector<PreferencePair> moved = kPairs;
        (chosen ? moved[i].chosen : moved[i].rejected) += side == 0 ? -step : step;
        PreferenceStatistics other;
        losses[side] = loss(moved, 1, absl::MakeSpan(unused), absl::MakeSpan(unused), &other);
      }
      EXPECT_NEAR((chosen ? d_chosen : d_rejected)[i], scale * (losses[1] - losses[0]) / (2 * step), 1e-8) << i;
    }
  }
  return whole;
}

TEST(Preference, DpoIsWhatAnotherProgramComputes) {
  for (const bool smooth : {false, true}) {
    PreferenceStatistics statistics;
    const double beta = smooth ? 0.5 : 0.1;
    const double loss =
        Checked([&](auto pairs, double scale, auto d_chosen, auto d_rejected,
                    auto* sums) { return DpoLoss(pairs, beta, smooth ? 0.1 : 0, scale, d_chosen, d_rejected, sums); },
                &statistics);
    EXPECT_NEAR(loss, smooth ? 2.4470053432506913 : 2.0950260203176323, 1e-14);
    EXPECT_EQ(statistics.right, 1.5);  // one right, one wrong, one undecided
    EXPECT_NEAR(statistics.chosen_reward, beta * (1 - 1.5), 1e-15);
    EXPECT_NEAR(statistics.rejected_reward, beta * (-1.5 + 1), 1e-15);
  }
}

TEST(Preference, IpoIsWhatAnotherProgramComputes) {
  for (const bool means : {false, true}) {
    PreferenceStatistics statistics;
    const double loss =
        Checked([&](auto pairs, double scale, auto d_chosen, auto d_rejected,
                    auto* sums) { return IpoLoss(pairs, 0.1, means, scale, d_chosen, d_rejected, sums); },
                &statistics);
    EXPECT_NEAR(loss, means ? 76.27877551020407 : 87.5, 1e-13);
    EXPECT_EQ(statistics.right, 1.5);
  }
}

TEST(Preference, OrpoIsWhatAnotherProgramComputes) {
  PreferenceStatistics statistics;
  const double loss = Checked([](auto pairs, double scale, auto d_chosen, auto d_rejected,
                                 auto* sums) { return OrpoLoss(pairs, 0.1, scale, d_chosen, d_rejected, sums); },
                              &statistics);
  EXPECT_NEAR(loss, 0.18893404038796063, 1e-14);
  // Mean log-probabilities of -2 and -2, -2.3 and -2.7, -1.5 and -1.5.
  EXPECT_EQ(statistics.right, 2);
}

TEST(Preference, OrpoStaysFiniteWhereResponsesAreCertainOrImpossible) {
  double d_chosen = 0, d_rejected = 0;
  PreferenceStatistics statistics;
  const PreferencePair pair = {0, -1e6, 0, 0, 3, 3};
  EXPECT_LT(OrpoLoss({&pair, 1}, 0.1, 1, {&d_chosen, 1}, {&d_rejected, 1}, &statistics), 1e-6);
  EXPECT_EQ(d_chosen, 0);
  const PreferencePair wrong = {-1e6, 0, 0, 0, 3, 3};
  EXPECT_TRUE(std::isfinite(OrpoLoss({&wrong, 1}, 0.1, 1, {&d_chosen, 1}, {&d_rejected, 1}, &statistics)));
}

TEST(Preference, KtoIsWhatAnotherProgramComputes) {
  const std::vector<RatedResponse> responses = {
      {-10.0, -11.0, true}, {-14.0, -12.0, false}, {-5.0, -5.5, false}, {-7.0, -6.0, true}};
  const double reference_point = KtoReferencePoint({0.5, -0.25, 1.0, 0.35});
  EXPECT_DOUBLE_EQ(reference_point, 0.4);
  const KtoOptions options = {0.3, 1.2, 0.8};
  std::vector<double> derivatives(4), unused(4);
  KtoStatistics statistics, other;
  EXPECT_NEAR(KtoLoss(responses, reference_point, options, 0.25, absl::MakeSpan(derivatives), &statistics),
              1.9382391653756632, 1e-14);
  const double step = 1e-5;
  for (size_t i = 0; i < responses.size(); ++i) {
    double losses[2];
    for (const int side : {0, 1}) {
      std::vector<RatedResponse> moved = responses;
      moved[i].policy += side == 0 ? -step : step;
      losses[side] = KtoLoss(moved, reference_point, options, 1, absl::MakeSpan(unused), &other);
    }
    EXPECT_NEAR(derivatives[i], 0.25 * (losses[1] - losses[0]) / (2 * step), 1e-9) << i;
  }
  EXPECT_EQ(statistics.desirable, 2);
  EXPECT_EQ(statistics.undesirable, 2);
  EXPECT_NEAR(statistics.desirable_reward, 0.3 * (1 - 1), 1e-15);
  EXPECT_NEAR(statistics.undesirable_reward, 0.3 * (-2 + 0.5), 1e-15);
  EXPECT_DOUBLE_EQ(statistics.reference_point, 4 * 0.4);
}

TEST(Preference, KtoMeasuresFromNothingBelowZero) {
  EXPECT_EQ(KtoReferencePoint({-3, 1}), 0);
  EXPECT_EQ(KtoReferencePoint({}), 0);
}

}  // namespace
}  // namespace millrace::model
