// Against values computed with exact fractions and by bisection, and against formulas that need no resampling.
#include "evaluation/statistics.h"

#include <cmath>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"

namespace millrace::evaluation {
namespace {

std::vector<Term> Values(const std::vector<double>& values) {
  std::vector<Term> terms;
  for (const double value : values) terms.push_back({value, 1});
  return terms;
}

// Documents whose log-probability is about -3 a word.
std::vector<Term> Documents(uint64_t key, double each = 3) {
  std::vector<Term> terms;
  for (uint64_t i = 0; i < 500; ++i) {
    const auto words = Philox(key)(0, i);
    const double weight = 5 + words[0] % 90;
    terms.push_back({-weight * (each + static_cast<double>(UniformFloat(words[1])) - 0.5), weight});
  }
  return terms;
}

TEST(Statistics, WilsonsIntervalSolvesItsEquation) {
  // The ends p of (share - p)² = z² p (1 - p) / n.
  const struct {
    uint64_t successes, n;
    double low, high;
  } cases[] = {{0, 10, 0, 0.277532799863},
               {10, 10, 0.722467200137, 1},
               {3, 10, 0.107791267406, 0.603221852539},
               {81, 263, 0.255288519878, 0.366209576983},  // Newcombe 1998, table I: 0.2553 to 0.3662
               {1, 1, 0.206549314377, 1}};
  for (const auto& one : cases) {
    const Interval interval = WilsonInterval(one.successes, one.n);
    EXPECT_NEAR(interval.low, one.low, 1e-11) << one.successes;
    EXPECT_NEAR(interval.high, one.high, 1e-11) << one.successes;
  }
}

TEST(Statistics, McNemarsTestIsTheBinomialOne) {
  EXPECT_EQ(McNemarPValue(0, 0), 1);
  EXPECT_NEAR(McNemarPValue(1, 0), 1, 1e-14);
  EXPECT_NEAR(McNemarPValue(10, 2), 0.03857421875, 1e-14);
  EXPECT_NEAR(McNemarPValue(2, 10), 0.03857421875, 1e-14);
  EXPECT_EQ(McNemarPValue(7, 7), 1);
  EXPECT_NEAR(McNemarPValue(3, 25) / 2.74404883384705e-05, 1, 1e-12);
  EXPECT_NEAR(McNemarPValue(600, 700) / 0.00601579386104495, 1, 1e-11);
  EXPECT_EQ(McNemarPValue(0, 1'000'000), 0);
}

TEST(Statistics, PassAtKIsOneLessTheShareOfDrawsThatAllFail) {
  EXPECT_EQ(PassAtK(10, 0, 1), 0);
  EXPECT_NEAR(PassAtK(10, 3, 1), 0.3, 1e-15);
  EXPECT_NEAR(PassAtK(10, 3, 5), 11.0 / 12, 1e-15);
  EXPECT_NEAR(PassAtK(200, 17, 10), 0.597448901579912, 1e-14);
  EXPECT_NEAR(PassAtK(200, 17, 100), 0.99999636769084, 1e-14);
  EXPECT_EQ(PassAtK(5, 5, 5), 1);
  EXPECT_EQ(PassAtK(20, 1, 20), 1);
}

TEST(Statistics, ASharesErrorHasNMinusOneAndWilsonsInterval) {
  const Estimate estimate = EstimateOf(Measure::kShare, Values({1, 0, 1, 1, 0, 1, 1, 1}), 1);
  EXPECT_EQ(estimate.value, 0.75);
  EXPECT_NEAR(estimate.standard_error, 0.16366341767699427, 1e-15);
  const Interval interval = WilsonInterval(6, 8);
  EXPECT_EQ(estimate.low, interval.low);
  EXPECT_EQ(estimate.high, interval.high);
  const Estimate one = EstimateOf(Measure::kShare, Values({1}), 1);
  EXPECT_TRUE(std::isnan(one.standard_error));
  EXPECT_NEAR(one.low, 0.206549314377, 1e-11);
}

TEST(Statistics, AMeansIntervalIsTheNormalOne) {
  const Estimate estimate = EstimateOf(Measure::kMean, Values({.25, .5, 1, .125}), 1);
  EXPECT_EQ(estimate.value, 0.46875);
  EXPECT_NEAR(estimate.standard_error, 0.19348099605215324, 1e-15);
  EXPECT_NEAR(estimate.low, 0.08953421604484324, 1e-14);
  EXPECT_NEAR(estimate.high, 0.8479657839551568, 1e-14);
}

TEST(Statistics, PerplexityIsOfAllWordsTogether) {
  const std::vector<Term> terms = {{-10, 4}, {-3, 2}, {-20, 9}};
  EXPECT_NEAR(EstimateOf(Measure::kPerplexity, terms, 1).value, 9.025013499434122, 1e-12);
  EXPECT_NEAR(EstimateOf(Measure::kBitsPerWeight, terms, 1).value, 3.17392908995572, 1e-13);
  const Estimate one = EstimateOf(Measure::kPerplexity, {{-10, 4}}, 1);
  EXPECT_NEAR(one.value, std::exp(2.5), 1e-12);
  EXPECT_TRUE(std::isnan(one.standard_error) && std::isnan(one.low) && std::isnan(one.high));
  EXPECT_EQ(EstimateOf(Measure::kPerplexity, {{-10000, 4}}, 1).value, INFINITY);
}

// For many documents the error of a ratio of sums is that of its linear part (Cochran, Sampling Techniques, 6.4).
TEST(Statistics, TheBootstrapAgreesWithTheLinearError) {
  const std::vector<Term> terms = Documents(7);
  double sum = 0, weight = 0, squares = 0;
  const auto n = static_cast<double>(terms.size());
  for (const Term& term : terms) {
    sum += -term.sum;
    weight += term.weight;
  }
  for (const Term& term : terms) squares += std::pow(-term.sum - sum / weight * term.weight, 2);
  const double nats_error = std::sqrt(squares / (n - 1) / n) / (weight / n);
  const Estimate bits = EstimateOf(Measure::kBitsPerWeight, terms, 3);
  EXPECT_NEAR(bits.value, sum / weight / std::log(2.0), 1e-12);
  const double error = nats_error / std::log(2.0);
  EXPECT_NEAR(bits.standard_error / error, 1, 0.08);
  EXPECT_NEAR((bits.value - bits.low) / (1.96 * error), 1, 0.15);
  EXPECT_NEAR((bits.high - bits.value) / (1.96 * error), 1, 0.15);
  const Estimate perplexity = EstimateOf(Measure::kPerplexity, terms, 3);
  EXPECT_NEAR(perplexity.standard_error / (nats_error * perplexity.value), 1, 0.08);
  // A function of the seed.
  EXPECT_EQ(EstimateOf(Measure::kBitsPerWeight, terms, 3).low, bits.low);
  EXPECT_NE(EstimateOf(Measure::kBitsPerWeight, terms, 4).low, bits.low);
}

TEST(Statistics, ADifferenceIsOfPairs) {
  const auto first = Values({1, 0, 1, 0, 0, 1}), second = Values({1, 1, 0, 1, 1, 1});
  const Difference difference = DifferenceOf(Measure::kShare, first, second, 1);
  EXPECT_NEAR(difference.estimate.value, 1.0 / 3, 1e-15);
  EXPECT_NEAR(difference.estimate.standard_error, 1.0 / 3, 1e-15);
  EXPECT_NEAR(difference.estimate.low, -0.3199879948466848, 1e-14);
  EXPECT_NEAR(difference.estimate.high, 0.9866546615133513, 1e-14);
  EXPECT_EQ(difference.better, 3u);
  EXPECT_EQ(difference.worse, 1u);
  EXPECT_NEAR(difference.p_value, 2 * 5.0 / 16, 1e-14);
  EXPECT_TRUE(std::isnan(DifferenceOf(Measure::kMean, first, second, 1).p_value));
}

// What makes a document hard is hard for both models: the pairs' difference is known far better than either value.
TEST(Statistics, WhatBothModelsFindHardCancelsOut) {
  const std::vector<Term> first = Documents(7);
  std::vector<Term> second = first;
  for (Term& term : second) term.sum -= 0.01 * term.weight;
  const Difference difference = DifferenceOf(Measure::kBitsPerWeight, first, second, 3);
  EXPECT_NEAR(difference.estimate.value, 0.01 / std::log(2.0), 1e-12);
  EXPECT_LT(difference.estimate.standard_error, 1e-12);
  EXPECT_GT(EstimateOf(Measure::kBitsPerWeight, first, 3).standard_error, 1e-3);
  const Difference none = DifferenceOf(Measure::kPerplexity, first, first, 3);
  EXPECT_EQ(none.estimate.value, 0);
  EXPECT_EQ(none.estimate.standard_error, 0);
}

}  // namespace
}  // namespace millrace::evaluation
