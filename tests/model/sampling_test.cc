// Drawn frequencies against exact probabilities: uniforms on a fine grid give each token its share to within one.
#include "model/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::model {
namespace {

constexpr int kGrid = 1 << 14;

// How often each token is drawn, of kGrid uniforms from 0 to just below 1.
std::vector<int> Counts(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < kGrid; ++i) {
    ++counts[Sample(logits, options, (static_cast<float>(i) + 0.5f) / static_cast<float>(kGrid))];
  }
  return counts;
}

// Softmax of logits / temperature over `kept` tokens.
std::vector<double> Probabilities(const std::vector<float>& logits, double temperature, const std::vector<bool>& kept) {
  std::vector<double> p(logits.size(), 0);
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (kept[i]) sum += p[i] = std::exp(static_cast<double>(logits[i]) / temperature);
  }
  for (double& value : p) value /= sum;
  return p;
}

void ExpectShares(const std::vector<int>& counts, const std::vector<double>& p) {
  double chi_square = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    EXPECT_NEAR(counts[i], kGrid * p[i], 1.01) << i;
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << i;
    } else {
      chi_square += std::pow(counts[i] - kGrid * p[i], 2) / (kGrid * p[i]);
    }
  }
  // Chance would make it about as large as the number of tokens; a grid is more even than chance.
  EXPECT_LT(chi_square, 2);
}

const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 1.5f, 0.0f, 2.5f, -0.5f, 1.0f};

TEST(SamplingTest, DrawsByProbability) {
  ExpectShares(Counts(kLogits, {}), Probabilities(kLogits, 1, std::vector<bool>(8, true)));
  // The level of all logits means nothing, however high or low.
  for (const float level : {300.0f, -300.0f, 20'000.0f}) {
    std::vector<float> moved = kLogits;
    for (float& logit : moved) logit += level;
    ExpectShares(Counts(moved, {}), Probabilities(kLogits, 1, std::vector<bool>(8, true)));
  }
}

TEST(SamplingTest, TemperatureFlattensAndSharpens) {
  for (const double temperature : {0.25, 0.5, 2.0, 10.0}) {
    SamplingOptions options;
    options.temperature = temperature;
    ExpectShares(Counts(kLogits, options), Probabilities(kLogits, temperature, std::vector<bool>(8, true)));
  }
  SamplingOptions cold;
  cold.temperature = 1e-6;
  EXPECT_EQ(Counts(kLogits, cold)[5], kGrid);
}

TEST(SamplingTest, GreedyTakesTheLargestAndTheFirstOfEquals) {
  SamplingOptions greedy;
  greedy.temperature = 0;
  SamplingOptions one;
  one.top_k = 1;
  SamplingOptions least;
  least.top_p = 1e-9;
  const std::vector<float> ties = {1, 3, 2, 3, 3};
  for (const SamplingOptions& options : {greedy, one, least}) {
    EXPECT_EQ(Counts(kLogits, options)[5], kGrid);
    EXPECT_EQ(Counts(ties, options)[1], kGrid);
  }
}

TEST(SamplingTest, TopKKeepsTheLargest) {
  for (const int64_t k : {2, 3, 7, 8, 100}) {
    SamplingOptions options;
    options.top_k = k;
    options.temperature = 0.7;
    std::vector<float> sorted = kLogits;
    std::sort(sorted.rbegin(), sorted.rend());
    std::vector<bool> kept(8);
    for (size_t i = 0; i < 8; ++i) kept[i] = k >= 8 || kLogits[i] >= sorted[static_cast<size_t>(k) - 1];
    ExpectShares(Counts(kLogits, options), Probabilities(kLogits, 0.7, kept));
  }
}

TEST(SamplingTest, EqualsAreCutByTheirIds) {
  const std::vector<float> ties = {1, 2, 1, 2, 2, 1};
  SamplingOptions options;
  options.top_k = 2;
  ExpectShares(Counts(ties, options), Probabilities(ties, 1, {false, true, false, true, false, false}));
  options.top_k = 4;
  ExpectShares(Counts(ties, options), Probabilities(ties, 1, {true, true, false, true, true, false}));
}

TEST(SamplingTest, TopPKeepsTheSmallestSetThatReachesIt) {
  // Probabilities of 1/2, 1/4, 1/8, 1/16, 1/16, in mixed order.
  const float log2 = std::log(2.0f);
  const std::vector<float> logits = {-3 * log2, -log2, -4 * log2, -2 * log2, -4 * log2};
  struct Case {
    double p;
    std::vector<bool> kept;
  };
  const std::vector<Case> cases = {{0.3, {false, true, false, false, false}},
                                   {0.6, {false, true, false, true, false}},
                                   {0.8, {true, true, false, true, false}},
                                   {0.9, {true, true, true, true, false}},
                                   {0.99, {true, true, true, true, true}}};
  for (const Case& about : cases) {
    SamplingOptions options;
    options.top_p = about.p;
    ExpectShares(Counts(logits, options), Probabilities(logits, 1, about.kept));
  }
}

TEST(SamplingTest, TopPIsOfWhatTemperatureAndTopKLeave) {
  const float log2 = std::log(2.0f);
  const std::vector<float> logits = {-3 * log2, -log2, -4 * log2, -2 * log2, -4 * log2};
  SamplingOptions options;
  // Three are left, of probabilities 4/7, 2/7 and 1/7: 0.8 takes two of them, 0.9 all.
  options.top_k = 3;
  options.top_p = 0.8;
  ExpectShares(Counts(logits, options), Probabilities(logits, 1, {false, true, false, true, false}));
  options.top_p = 0.9;
  ExpectShares(Counts(logits, options), Probabilities(logits, 1, {true, true, false, true, false}));
  // Cold, the first one has 0.75 and more alone.
  options.top_k = 0;
  options.top_p = 0.7;
  options.temperature = 0.5;
  ExpectShares(Counts(logits, options), Probabilities(logits, 0.5, {false, true, false, false, false}));
}

TEST(SamplingTest, NeverDrawsWhatHasNoProbability) {
  const float none = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {none, 0, none, 1, -5000};
  const std::vector<int> counts = Counts(logits, {});
  EXPECT_EQ(counts[0] + counts[2] + counts[4], 0);
  const float almost_one = 1 - 0x1p-24f;
  EXPECT_NE(Sample(logits, {}, almost_one), 4u);
  EXPECT_EQ(Sample(std::vector<float>{-7}, {}, almost_one), 0u);
  EXPECT_EQ(Sample(std::vector<float>{-7}, {}, 0), 0u);
}

TEST(SamplingTest, IsAFunctionOfItsArguments) {
  SamplingOptions options;
  options.top_k = 5;
  options.top_p = 0.9;
  for (int i = 0; i < 100; ++i) {
    const float uniform = static_cast<float>(i) / 100;
    EXPECT_EQ(Sample(kLogits, options, uniform), Sample(std::vector<float>(kLogits), options, uniform));
  }
}

}  // namespace
}  // namespace millrace::model
