#include "model/objectives/reward.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::model {
namespace {

const std::vector<RewardPair> kPairs = {
    {1.5, 0.25}, {0.5, 2.0, 1.0}, {-1.0, -1.0}, {3.0, -4.0, 0.5}, {0.75, 0.5, 7, /*tie=*/true}};

struct Result {
  double loss = 0;
  std::vector<double> d_chosen, d_rejected;
  RewardStatistics statistics;
};

Result Loss(const std::vector<RewardPair>& pairs, double centring, double scale = 1) {
  Result result;
  result.d_chosen.resize(pairs.size());
  result.d_rejected.resize(pairs.size());
  result.loss = RewardLoss(pairs, centring, scale, absl::MakeSpan(result.d_chosen), absl::MakeSpan(result.d_rejected),
                           &result.statistics);
  return result;
}

TEST(Reward, IsWhatAnotherProgramComputes) {
  const Result result = Loss(kPairs, 0.01);
  EXPECT_NEAR(result.loss, 4.385157726236466, 1e-13);
  EXPECT_EQ(result.statistics.loss, result.loss);
}

TEST(Reward, DerivativesAreSlopes) {
  const double step = 1e-5;
  const Result result = Loss(kPairs, 0.02, 0.25);
  for (size_t i = 0; i < kPairs.size(); ++i) {
    for (const bool chosen : {true, false}) {
      double losses[2];
      for (const int side : {0, 1}) {
        std::vector<RewardPair> moved = kPairs;
        (chosen ? moved[i].chosen : moved[i].rejected) += side == 0 ? -step : step;
        losses[side] = Loss(moved, 0.02).loss;
      }
      EXPECT_NEAR((chosen ? result.d_chosen : result.d_rejected)[i], 0.25 * (losses[1] - losses[0]) / (2 * step), 1e-9)
          << i;
    }
  }
}

TEST(Reward, StaysFiniteFarOut) {
  const Result result = Loss({{-1e5, 1e5}, {1e5, -1e5}, {1e5, -1e5, 0, true}}, 0);
  EXPECT_EQ(result.loss, 2e5 + 1e5);
  EXPECT_EQ(result.d_chosen, (std::vector<double>{-1, 0, 0.5}));
}

TEST(Reward, ATieIsTheSameEitherWayRound) {
  const Result one = Loss({{1.5, 0.25, 0, true}}, 0.01), other = Loss({{0.25, 1.5, 0, true}}, 0.01);
  EXPECT_DOUBLE_EQ(one.loss, other.loss);
  EXPECT_DOUBLE_EQ(one.d_chosen[0], other.d_rejected[0]);
}

TEST(Reward, ReportsSumsOfComparisons) {
  const RewardStatistics statistics = Loss(kPairs, 0).statistics;
  EXPECT_EQ(statistics.comparisons, 4);
  EXPECT_EQ(statistics.ties, 1);
  EXPECT_EQ(statistics.right, 2.5);  // equal rewards count half
  EXPECT_EQ(statistics.margin, 1.25 - 1.5 + 0 + 7);
  EXPECT_EQ(statistics.rewards, 1.75 + 2.5 - 2 - 1 + 1.25);
  // Confidences 0.777, 0.818, 0.5 and 0.9991 in bins of a twentieth from a half on.
  for (size_t bin = 0; bin < RewardStatistics::kBins; ++bin) {
    const RewardStatistics::Bin& about = statistics.calibration[bin];
    EXPECT_EQ(about.count, bin == 0 || bin == 5 || bin == 6 || bin == 9 ? 1 : 0) << bin;
    EXPECT_EQ(about.right, bin == 0 ? 0.5 : bin == 5 || bin == 9 ? 1 : 0) << bin;
  }
  EXPECT_NEAR(statistics.calibration[5].confidence, 0.7772998611746911, 1e-15);
  EXPECT_NEAR(statistics.calibration[6].confidence, 0.8175744761936437, 1e-15);
}

}  // namespace
}  // namespace millrace::model
