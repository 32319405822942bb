#include "coordinator/agreement.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::coordinator {
namespace {

using Row = std::vector<uint32_t>;

PairRating Said(uint64_t pair, const std::string& rater, v1::Rating::Choice choice, bool flagged = false) {
  PairRating said{.pair = pair};
  said.rating.set_rater(rater);
  said.rating.set_choice(choice);
  said.rating.set_flagged(flagged);
  return said;
}

// [[20, 5], [10, 15]]: P_o = 35/50, P_e = 1/2 · 3/5 + 1/2 · 2/5 = 1/2.
TEST(CohenKappa, IsThatOfATableCountedByHand) {
  std::vector<std::pair<uint32_t, uint32_t>> choices;
  const uint32_t table[2][2] = {{20, 5}, {10, 15}};
  for (uint32_t first = 0; first < 2; ++first) {
    for (uint32_t second = 0; second < 2; ++second) {
      choices.insert(choices.end(), table[first][second], {first, second});
    }
  }
  const Kappa kappa = CohenKappa(choices);
  EXPECT_EQ(kappa.items, 50u);
  EXPECT_DOUBLE_EQ(kappa.observed, 0.7);
  EXPECT_DOUBLE_EQ(kappa.expected, 0.5);
  EXPECT_DOUBLE_EQ(kappa.value.value(), 0.4);
}

TEST(CohenKappa, IsOneForEqualChoicesAndNegativeForOppositeOnes) {
  const std::vector<std::pair<uint32_t, uint32_t>> equal = {{0, 0}, {1, 1}, {2, 2}};
  EXPECT_DOUBLE_EQ(CohenKappa(equal).value.value(), 1);
  const std::vector<std::pair<uint32_t, uint32_t>> opposite = {{0, 1}, {1, 0}};
  EXPECT_DOUBLE_EQ(CohenKappa(opposite).value.value(), -1);
}

TEST(CohenKappa, IsUndefinedWithoutPairsOrWithoutChoice) {
  EXPECT_FALSE(CohenKappa({}).value.has_value());
  const std::vector<std::pair<uint32_t, uint32_t>> one_category = {{1, 1}, {1, 1}};
  EXPECT_FALSE(CohenKappa(one_category).value.has_value());
  EXPECT_DOUBLE_EQ(CohenKappa(one_category).observed, 1);
}

// The worked example of fourteen raters, ten items and five categories that encyclopaedias give: P_o = 0.378,
// P_e = 0.213, kappa = 0.210.
TEST(FleissKappa, IsThatOfThePublishedExample) {
  const std::vector<Row> counts = {{0, 0, 0, 0, 14}, {0, 2, 6, 4, 2}, {0, 0, 3, 5, 6}, {0, 3, 9, 2, 0},
                                   {2, 2, 8, 1, 1},  {7, 7, 0, 0, 0}, {3, 2, 6, 3, 0}, {2, 5, 3, 2, 2},
                                   {6, 5, 2, 1, 0},  {0, 2, 2, 3, 7}};
  const Kappa kappa = FleissKappa(counts);
  EXPECT_EQ(kappa.items, 10u);
  EXPECT_NEAR(kappa.observed, 0.378, 5e-4);
  EXPECT_NEAR(kappa.expected, 0.213, 5e-4);
  EXPECT_NEAR(kappa.value.value(), 0.210, 5e-4);
}

TEST(FleissKappa, IsUndefinedWithoutItemsOrWithoutChoice) {
  EXPECT_FALSE(FleissKappa({}).value.has_value());
  EXPECT_FALSE(FleissKappa(std::vector<Row>{{3, 0}, {3, 0}}).value.has_value());
}

// Pairs 0 to 3: (A, A), (B, A), (TIE, TIE), (A, skip). Over the first three P_o = 2/3 and
// P_e = 1/3 · 2/3 + 1/3 · 0 + 1/3 · 1/3 = 1/3, so kappa = 1/2.
TEST(Agreement, OfTwoIsCohensOverWhatBothChose) {
  // Of pair 1 the other rater speaks first: the order does not matter.
  const std::vector<PairRating> ratings = {
      Said(0, "ann", v1::Rating::A),    Said(0, "bob", v1::Rating::A),
      Said(1, "bob", v1::Rating::A),    Said(1, "ann", v1::Rating::B),
      Said(2, "ann", v1::Rating::TIE),  Said(2, "bob", v1::Rating::TIE),
      Said(3, "ann", v1::Rating::A),    Said(3, "bob", v1::Rating::SKIP, /*flagged=*/true),
      Said(4, "cleo", v1::Rating::SKIP)};
  const Agreement agreement = AgreementOf(ratings);
  EXPECT_FALSE(agreement.fleiss) << "who only skips does not count";
  EXPECT_EQ(agreement.kappa.items, 3u);
  EXPECT_DOUBLE_EQ(agreement.kappa.observed, 2.0 / 3);
  EXPECT_DOUBLE_EQ(agreement.kappa.expected, 1.0 / 3);
  EXPECT_DOUBLE_EQ(agreement.kappa.value.value(), 0.5);
  ASSERT_EQ(agreement.raters.size(), 3u);
  EXPECT_EQ(agreement.raters[0].rater, "ann");
  EXPECT_EQ(agreement.raters[0].rated, 4u);
  EXPECT_EQ(agreement.raters[0].compared, 3u);
  EXPECT_EQ(agreement.raters[0].equal, 2u);
  EXPECT_EQ(agreement.raters[1].rater, "bob");
  EXPECT_EQ(agreement.raters[1].rated, 3u);
  EXPECT_EQ(agreement.raters[1].skipped, 1u);
  EXPECT_EQ(agreement.raters[1].flagged, 1u);
  EXPECT_EQ(agreement.raters[2].compared, 0u);
}

// Two pairs of three choices, AAB and BBB, and one of two, which is left out: P_o = (1/3 + 1)/2 = 2/3,
// P_e = (2/6)² + (4/6)² = 5/9, kappa = (1/9)/(4/9).
TEST(Agreement, OfMoreIsFleissOverPairsOfTheUsualNumber) {
  const std::vector<PairRating> ratings = {
      Said(0, "ann", v1::Rating::A), Said(0, "bob", v1::Rating::A), Said(0, "cleo", v1::Rating::B),
      Said(1, "ann", v1::Rating::B), Said(1, "bob", v1::Rating::B), Said(1, "dan", v1::Rating::B),
      Said(2, "ann", v1::Rating::A), Said(2, "bob", v1::Rating::B), Said(2, "dan", v1::Rating::SKIP)};
  const Agreement agreement = AgreementOf(ratings);
  EXPECT_TRUE(agreement.fleiss);
  EXPECT_EQ(agreement.choices_a_pair, 3u);
  EXPECT_EQ(agreement.kappa.items, 2u);
  EXPECT_NEAR(agreement.kappa.value.value(), 0.25, 1e-12);
}

TEST(Agreement, OfNobodyIsUndefined) {
  const Agreement agreement = AgreementOf({});
  EXPECT_TRUE(agreement.raters.empty());
  EXPECT_FALSE(agreement.kappa.value.has_value());
}

}  // namespace
}  // namespace millrace::coordinator
