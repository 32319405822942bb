// Against numbers that another program computed from the sums that define them.
#include "model/objectives/advantages.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::model {
namespace {

using Doubles = std::vector<double>;

void ExpectNear(const Doubles& got, const Doubles& expected, double tolerance = 1e-14) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], tolerance) << i;
}

TEST(Advantages, GeneralizedOnesAreDiscountedSumsOfSurprises) {
  const Doubles rewards = {0.1, -0.2, 0.0, 1.0}, values = {0.5, 0.4, 0.7, 0.2};
  Doubles advantages(4);
  GeneralizedAdvantages(rewards, values, 0.99, 0.95, absl::MakeSpan(advantages));
  ExpectNear(advantages, {0.3049553785999999, 0.32850119999999994, 0.25040000000000007, 0.8});
  // With γ = λ = 1 what is left to come, less what was expected.
  GeneralizedAdvantages(rewards, values, 1, 1, absl::MakeSpan(advantages));
  ExpectNear(advantages, {0.9 - 0.5, 0.8 - 0.4, 1.0 - 0.7, 1.0 - 0.2});
  GeneralizedAdvantages({}, {}, 1, 1, {});
}

TEST(Advantages, OfAGroupHaveItsDeviation) {
  const Doubles rewards = {1.0, 0.0, 0.0, 2.5};
  Doubles advantages(4);
  EXPECT_NEAR(GroupAdvantages(rewards, true, absl::MakeSpan(advantages)), 1.1814539065631522, 1e-15);
  ExpectNear(advantages, {0.10579288791282833, -0.7405502153897984, -0.7405502153897984, 1.3753075428667683});
  GroupAdvantages(rewards, false, absl::MakeSpan(advantages));
  ExpectNear(advantages, {0.125, -0.875, -0.875, 1.625});
  EXPECT_EQ(GroupAdvantages({0.5, 0.5, 0.5, 0.5}, true, absl::MakeSpan(advantages)), 0);
  ExpectNear(advantages, {0, 0, 0, 0});
}

TEST(Advantages, LeaveOneOut) {
  Doubles advantages(4);
  LeaveOneOutAdvantages({1.0, 0.0, 0.0, 2.5}, absl::MakeSpan(advantages));
  ExpectNear(advantages, {1.0 / 6, -3.5 / 3, -3.5 / 3, 6.5 / 3});
}

TEST(Advantages, WhitenedOnesHaveMeanZeroAndDeviationOne) {
  Doubles advantages = {1, 2, 3, 6};
  Whiten(3, 2, absl::MakeSpan(advantages));
  ExpectNear(advantages, {-1, -0.5, 0, 1.5}, 1e-7);
}

TEST(Divergence, EstimatesAverageToIt) {
  // Over all tokens of a distribution, weighted by it.
  const Doubles policy = {0.5, 0.3, 0.2}, reference = {0.25, 0.25, 0.5};
  double truth = 0, k1 = 0, k3 = 0;
  for (size_t i = 0; i < 3; ++i) {
    truth += policy[i] * std::log(policy[i] / reference[i]);
    k1 += policy[i] * K1(std::log(policy[i]), std::log(reference[i]));
    k3 += policy[i] * K3(std::log(policy[i]), std::log(reference[i]));
  }
  EXPECT_NEAR(k1, truth, 1e-15);
  EXPECT_NEAR(k3, truth, 1e-15);
  EXPECT_NEAR(K3(-1, -1.75), 0.2223665527410148, 1e-15);
  EXPECT_EQ(K3(-1, -1), 0);
  EXPECT_GE(K3(-1, -1 + 1e-12), 0);
  EXPECT_TRUE(std::isfinite(K3(-1e6, 0)) && std::isfinite(K3(0, -1e6)));
}

}  // namespace
}  // namespace millrace::model
