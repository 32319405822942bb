#include "coordinator/stop_rules.h"

#include "gtest/gtest.h"

namespace millrace::coordinator {
namespace {

v1::StopSpec Stop(uint64_t max_steps, uint32_t patience, double min_delta = 0) {
  v1::StopSpec spec;
  spec.set_max_steps(max_steps);
  spec.set_patience(patience);
  spec.set_min_delta(min_delta);
  return spec;
}

TEST(StopRules, PatienceStopsAtExactlySoManyEvaluationsWithoutABetterOne) {
  StopRules rules(Stop(1000, 3));
  EXPECT_TRUE(rules.Add(10, 2.0));
  EXPECT_FALSE(rules.Add(20, 2.5));
  EXPECT_FALSE(rules.Add(30, 2.0));  // equal is not better
  EXPECT_EQ(rules.Reason(30), "");
  EXPECT_FALSE(rules.Add(40, 2.1));
  EXPECT_EQ(rules.Reason(40), "patience");
  EXPECT_EQ(rules.best_step(), 10u);
  EXPECT_EQ(rules.best_loss(), 2.0);
}

TEST(StopRules, ABetterEvaluationRestoresPatience) {
  StopRules rules(Stop(1000, 2));
  rules.Add(10, 2.0);
  rules.Add(20, 2.1);
  EXPECT_TRUE(rules.Add(30, 1.9));
  rules.Add(40, 1.95);
  EXPECT_EQ(rules.Reason(40), "");
  rules.Add(50, 1.95);
  EXPECT_EQ(rules.Reason(50), "patience");
}

TEST(StopRules, SmallGainsAreTheBestButDoNotRestorePatience) {
  StopRules rules(Stop(1000, 2, 0.1));
  rules.Add(10, 2.0);
  EXPECT_TRUE(rules.Add(20, 1.95));
  EXPECT_TRUE(rules.Add(30, 1.92));
  EXPECT_EQ(rules.Reason(30), "patience");
  EXPECT_EQ(rules.best_step(), 30u);
  // But small gains add up: the reference is the last evaluation that counted as better.
  StopRules slow(Stop(1000, 2, 0.1));
  slow.Add(10, 2.0);
  slow.Add(20, 1.95);
  slow.Add(30, 1.89);
  EXPECT_EQ(slow.Reason(30), "");
}

TEST(StopRules, ZeroPatienceNeverStopsBeforeTheLastStep) {
  StopRules rules(Stop(50, 0));
  for (uint64_t step = 1; step < 50; ++step) {
    rules.Add(step, 1.0 + static_cast<double>(step));
    EXPECT_EQ(rules.Reason(step), "");
  }
  EXPECT_EQ(rules.Reason(50), "max_steps");
}

}  // namespace
}  // namespace millrace::coordinator
