#include "optim/schedule.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::optim {
namespace {

v1::OptimizerSpec Spec(const std::string& schedule, uint32_t warmup_steps, double min_lr_ratio) {
  v1::OptimizerSpec spec;
  spec.set_schedule(schedule);
  spec.set_warmup_steps(warmup_steps);
  spec.set_min_lr_ratio(min_lr_ratio);
  spec.set_decay_fraction(0.2);
  return spec;
}

class Schedule : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Schedules, Schedule, ::testing::Values("constant", "cosine", "linear", "wsd"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Schedule, WarmsUpInALineToOne) {
  const v1::OptimizerSpec spec = Spec(GetParam(), 4, 0.1);
  EXPECT_DOUBLE_EQ(ScheduleFactor(spec, 1, 100), 0.25);
  EXPECT_DOUBLE_EQ(ScheduleFactor(spec, 2, 100), 0.5);
  EXPECT_DOUBLE_EQ(ScheduleFactor(spec, 4, 100), 1.0);
  EXPECT_DOUBLE_EQ(ScheduleFactor(spec, 5, 100), 1.0);
}

TEST_P(Schedule, WithoutWarmUpStartsAtOne) { EXPECT_DOUBLE_EQ(ScheduleFactor(Spec(GetParam(), 0, 0), 1, 100), 1.0); }

TEST_P(Schedule, NeverRisesAfterWarmUpAndStaysAtItsEnd) {
  const v1::OptimizerSpec spec = Spec(GetParam(), 10, 0.1);
  double last = 1;
  for (uint64_t step = 11; step <= 150; ++step) {
    const double factor = ScheduleFactor(spec, step, 100);
    EXPECT_LE(factor, last) << step;
    EXPECT_GE(factor, 0.1) << step;
    last = factor;
  }
  const double end = GetParam() == std::string("constant") ? 1.0 : 0.1;
  EXPECT_NEAR(ScheduleFactor(spec, 101, 100), end, 1e-15);
  EXPECT_NEAR(ScheduleFactor(spec, 1'000'000'000, 100), end, 1e-15);
}

TEST_P(Schedule, EndsAtDecayStepsWhereThatIsGiven) {
  v1::OptimizerSpec spec = Spec(GetParam(), 3, 0.1);
  std::vector<double> of_max_steps, of_decay_steps;
  for (uint64_t step = 1; step < 60; ++step) of_max_steps.push_back(ScheduleFactor(spec, step, 50));
  spec.set_decay_steps(50);
  for (uint64_t step = 1; step < 60; ++step) of_decay_steps.push_back(ScheduleFactor(spec, step, 1000));
  EXPECT_EQ(of_max_steps, of_decay_steps);
}

TEST_P(Schedule, WarmUpThatReachesTheEndLeavesOnlyTheEnd) {
  const v1::OptimizerSpec spec = Spec(GetParam(), 10, 0.1);
  EXPECT_DOUBLE_EQ(ScheduleFactor(spec, 5, 5), 0.5);
  EXPECT_NEAR(ScheduleFactor(spec, 11, 5), GetParam() == std::string("constant") ? 1.0 : 0.1, 1e-15);
}

// The step after s steps of warm-up is the schedule's start; e steps are taken in all, so that the end lies behind
// them.
TEST(ScheduleShape, CosineIsHalfAPeriod) {
  const v1::OptimizerSpec spec = Spec("cosine", 20, 0.1);
  EXPECT_NEAR(ScheduleFactor(spec, 61, 100), 0.55, 1e-15);
  for (uint64_t step = 21; step <= 101; ++step) {
    const double along = static_cast<double>(step - 21) / 80;
    EXPECT_NEAR(ScheduleFactor(spec, step, 100), 0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * along)), 1e-14) << step;
  }
}

TEST(ScheduleShape, LinearIsALine) {
  const v1::OptimizerSpec spec = Spec("linear", 20, 0.2);
  EXPECT_NEAR(ScheduleFactor(spec, 61, 100), 0.6, 1e-15);
  EXPECT_NEAR(ScheduleFactor(spec, 41, 100), 0.8, 1e-15);
  EXPECT_NEAR(ScheduleFactor(spec, 100, 100), 0.21, 1e-15);
}

TEST(ScheduleShape, WsdFallsOnlyAtTheEnd) {
  const v1::OptimizerSpec spec = Spec("wsd", 20, 0.0);
  for (uint64_t step = 21; step <= 81; ++step) EXPECT_DOUBLE_EQ(ScheduleFactor(spec, step, 100), 1.0) << step;
  EXPECT_NEAR(ScheduleFactor(spec, 82, 100), 0.95, 1e-15);
  EXPECT_NEAR(ScheduleFactor(spec, 91, 100), 0.5, 1e-15);
  EXPECT_NEAR(ScheduleFactor(spec, 100, 100), 0.05, 1e-15);
}

TEST(ScheduleShape, ConstantStays) {
  for (const uint64_t step : {1, 50, 100, 200}) {
    EXPECT_DOUBLE_EQ(ScheduleFactor(Spec("constant", 0, 0.1), step, 100), 1.0);
  }
}

}  // namespace
}  // namespace millrace::optim
