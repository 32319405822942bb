#include "ps/gradient_sum.h"

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

using ::testing::ElementsAre;

constexpr blocks::Coding kCoding = {16, -4};

std::string Coded(const std::vector<float>& values) {
  std::string coded;
  EXPECT_OK(blocks::Encode(values, kCoding, &coded));
  return coded;
}

std::vector<float> Decoded(const GradientSum& sum, size_t size) {
  std::vector<float> values(size);
  sum.Decode(kCoding, values.data());
  return values;
}

TEST(GradientSum, RepeatedPushCountsOnce) {
  GradientSum sum(3, 4);
  EXPECT_EQ(*sum.Add(2, Coded({1, -2, 0.5f}), kCoding, 5), true);
  EXPECT_EQ(*sum.Add(2, Coded({1, -2, 0.5f}), kCoding, 5), false);
  EXPECT_EQ(*sum.Add(0, Coded({0.25f, 1, 0}), kCoding, 1), true);
  EXPECT_THAT(Decoded(sum, 3), ElementsAre(1.25f, -1.0f, 0.5f));
  EXPECT_EQ(sum.saturated(), 6u);
  EXPECT_THAT(sum.Missing(10), ElementsAre(1, 3));
  EXPECT_THAT(sum.Missing(1), ElementsAre(1));
}

TEST(GradientSum, SquaredNormIsOfTheUnitsThatAreIn) {
  GradientSum sum(3, 2);
  EXPECT_EQ(sum.SquaredNorm(kCoding), 0);
  EXPECT_TRUE(*sum.Add(0, Coded({1, -2, 0.5f}), kCoding, 0));
  EXPECT_EQ(sum.SquaredNorm(kCoding), 1 + 4 + 0.25);
  EXPECT_TRUE(*sum.Add(1, Coded({1, 0, 0}), kCoding, 0));
  EXPECT_EQ(sum.SquaredNorm(kCoding), 4 + 4 + 0.25);
  sum.Clear();
  EXPECT_EQ(sum.SquaredNorm(kCoding), 0);
}

TEST(GradientSum, LargestIsOfTheSumNotOfItsParts) {
  GradientSum sum(2, 2);
  EXPECT_TRUE(*sum.Add(0, Coded({3, -1}), kCoding, 0));
  EXPECT_TRUE(*sum.Add(1, Coded({-2.5f, -1}), kCoding, 0));
  std::vector<float> values(2);
  EXPECT_EQ(sum.Decode(kCoding, values.data()), 32u);  // 2 in sixteenths
}

TEST(GradientSum, RefusedValuesChangeNothingAndMayComeAgain) {
  GradientSum sum(3, 2);
  EXPECT_TRUE(absl::IsInvalidArgument(sum.Add(1, Coded({1, 2}), kCoding, 7).status()));
  std::string beyond = Coded({1, 2, 3});
  beyond[5] = '\x80';
  beyond[4] = '\0';  // -32768, which no encoder sends
  EXPECT_TRUE(absl::IsInvalidArgument(sum.Add(1, beyond, kCoding, 7).status()));
  EXPECT_THAT(Decoded(sum, 3), ElementsAre(0, 0, 0));
  EXPECT_EQ(sum.saturated(), 0u);
  EXPECT_EQ(*sum.Add(1, Coded({1, 2, 3}), kCoding, 0), true);
}

// Sums of 16-bit contributions are narrow where they cannot overflow.
TEST(GradientSum, AsManyUnitsAsFitNarrowSumsAndMoreComeToTheSame) {
  const std::string largest = Coded({1e9f, -1e9f});  // clipped to the coding's limit
  for (const uint32_t units : {blocks::kMost16, blocks::kMost16 + 1}) {
    GradientSum sum(2, units);
    for (uint32_t unit = 0; unit < units; ++unit) ASSERT_TRUE(*sum.Add(unit, largest, kCoding, 0));
    std::vector<float> values(2);
    EXPECT_EQ(sum.Decode(kCoding, values.data()), uint64_t{units} * 32767);
    EXPECT_EQ(values[0], static_cast<float>(units * 32767.0 / 16));
    EXPECT_EQ(values[1], -values[0]);
  }
}

TEST(GradientSum, StepsMayHaveOtherCodingsButUnitsOfAStepOne) {
  constexpr blocks::Coding kWide = {64, -4};
  std::string wide;
  ASSERT_OK(blocks::Encode(std::vector<float>{3}, kWide, &wide));
  GradientSum sum(1, 2);
  for (int step = 0; step < 2; ++step) {
    EXPECT_TRUE(*sum.Add(0, wide, kWide, 0));
    EXPECT_TRUE(absl::IsInvalidArgument(sum.Add(1, Coded({1}), kCoding, 0).status()));
    EXPECT_TRUE(*sum.Add(1, wide, kWide, 0));
    EXPECT_THAT(Decoded(sum, 1), ElementsAre(6));
    sum.Clear();
    EXPECT_TRUE(*sum.Add(0, Coded({1}), kCoding, 0));
    EXPECT_TRUE(absl::IsInvalidArgument(sum.Add(1, wide, kWide, 0).status()));
    EXPECT_TRUE(*sum.Add(1, Coded({0.5f}), kCoding, 0));
    EXPECT_THAT(Decoded(sum, 1), ElementsAre(1.5f));
    sum.Clear();
  }
}

TEST(GradientSum, ClearedSumTakesTheUnitsAgain) {
  GradientSum sum(1, 1);
  EXPECT_TRUE(*sum.Add(0, Coded({1}), kCoding, 3));
  EXPECT_THAT(sum.Missing(10), ElementsAre());
  sum.Clear();
  EXPECT_EQ(sum.saturated(), 0u);
  EXPECT_TRUE(*sum.Add(0, Coded({2}), kCoding, 0));
  EXPECT_THAT(Decoded(sum, 1), ElementsAre(2));
}

TEST(GradientSum, UnitPushedByManyAtOnceCountsOnce) {
  constexpr uint32_t kUnits = 20;
  GradientSum sum(1000, kUnits);
  const std::string coded = Coded(std::vector<float>(1000, 1.0f));
  std::atomic<uint32_t> added = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (uint32_t unit = 0; unit < kUnits; ++unit) added += *sum.Add(unit, coded, kCoding, 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(added, kUnits);
  EXPECT_EQ(Decoded(sum, 1000), std::vector<float>(1000, 20.0f));
}

}  // namespace
}  // namespace millrace::ps
