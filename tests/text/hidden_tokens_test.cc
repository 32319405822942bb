#include "text/hidden_tokens.h"

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kVocab = 100;

// Special tokens at both ends and within.
const TokensByText& Special() {
  static const auto* const special =
      new TokensByText{{"<|endoftext|>", 0}, {"[PAD]", 40}, {"[CLS]", 41}, {"[SEP]", 98}, {"[MASK]", 99}};
  return *special;
}

EncoderTokens Tokens() { return *EncoderTokens::Create(Special(), kVocab); }

v1::MaskSpec Mask(double share, double masked, double random) {
  v1::MaskSpec mask;
  mask.set_share(share);
  mask.set_masked(masked);
  mask.set_random(random);
  return mask;
}

// [CLS], `first` tokens, [SEP], `second` tokens, [SEP].
std::vector<uint32_t> Sequence(uint32_t first, uint32_t second) {
  const EncoderTokens tokens = Tokens();
  std::vector<uint32_t> ids = {tokens.begin()};
  for (uint32_t i = 0; i < first + second; ++i) {
    if (i == first) ids.push_back(tokens.separator());
    ids.push_back(tokens.Ordinary(7 * i % tokens.ordinary_tokens()));
  }
  ids.push_back(tokens.separator());
  return ids;
}

TEST(EncoderTokensTest, OrdinaryTokensAreAllOthersInOrder) {
  const EncoderTokens tokens = Tokens();
  EXPECT_EQ(tokens.ordinary_tokens(), 95u);
  uint32_t rank = 0;
  for (uint32_t id = 0; id < kVocab; ++id) {
    const bool special = id == 0 || id == 40 || id == 41 || id >= 98;
    EXPECT_EQ(tokens.IsOrdinary(id), !special) << id;
    if (special) continue;
    EXPECT_EQ(tokens.Ordinary(rank++), id);
  }
}

TEST(EncoderTokensTest, WhatIsMissingIsNamed) {
  for (const char* text : {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}) {
    TokensByText some = Special();
    some.erase(text);
    EXPECT_THAT(EncoderTokens::Create(some, kVocab).status().message(), HasSubstr(text));
  }
  EXPECT_THAT(EncoderTokens::Create(Special(), 99).status().message(), HasSubstr("[MASK]"));
}

TEST(HiddenTokensTest, TheSharesAreThoseAskedFor) {
  const EncoderTokens tokens = Tokens();
  const std::vector<uint32_t> ids = Sequence(50, 70);
  const double share = 0.15, masked = 0.8, random = 0.1;
  constexpr int kRows = 3000;
  double shown_as_mask = 0, shown_as_they_are = 0, shown_as_others = 0;
  std::vector<int> of_column(ids.size(), 0);
  std::set<uint32_t> others;
  for (int row = 0; row < kRows; ++row) {
    const HiddenTokens hidden = Hide(Mask(share, masked, random), tokens, Philox(5), static_cast<uint64_t>(row), ids);
    ASSERT_EQ(hidden.columns.size(), 18u);  // 15 % of 120
    ASSERT_EQ(hidden.shown.size(), ids.size());
    std::vector<uint32_t> put_back = hidden.shown;
    for (size_t i = 0; i < hidden.columns.size(); ++i) {
      const uint32_t column = hidden.columns[i];
      ASSERT_TRUE(i == 0 || hidden.columns[i - 1] < column);
      ASSERT_EQ(hidden.targets[i], ids[column]);
      ASSERT_TRUE(tokens.IsOrdinary(ids[column]));
      ++of_column[column];
      const uint32_t shown = hidden.shown[column];
      if (shown == tokens.mask()) {
        ++shown_as_mask;
      } else if (shown == ids[column]) {
        ++shown_as_they_are;
      } else {
        ASSERT_TRUE(tokens.IsOrdinary(shown));
        others.insert(shown);
        ++shown_as_others;
      }
      put_back[column] = ids[column];
    }
    ASSERT_EQ(put_back, ids);  // nothing else changed
  }
  // Within five standard deviations.
  const double all = 18.0 * kRows;
  const auto near = [&](double count, double expected) {
    EXPECT_NEAR(count / all, expected, 5 * std::sqrt(expected * (1 - expected) / all));
  };
  near(shown_as_mask, masked);
  near(shown_as_others, random * 94 / 95);  // one in 95 is the token itself
  near(shown_as_they_are, 1 - masked - random + random / 95);
  EXPECT_EQ(others.size(), 95u);
  for (size_t column = 0; column < ids.size(); ++column) {
    if (!tokens.IsOrdinary(ids[column])) {
      EXPECT_EQ(of_column[column], 0) << column;
    } else {
      EXPECT_NEAR(of_column[column] / double{kRows}, share, 5 * std::sqrt(share * (1 - share) / kRows)) << column;
    }
  }
}

TEST(HiddenTokensTest, AreAFunctionOfKeyRowAndPlace) {
  const EncoderTokens tokens = Tokens();
  const std::vector<uint32_t> ids = Sequence(50, 70);
  const v1::MaskSpec mask = Mask(0.15, 0.8, 0.1);
  const HiddenTokens hidden = Hide(mask, tokens, Philox(5), 3, ids);
  // Whoever asks, and whatever was asked before.
  Hide(mask, tokens, Philox(6), 1, Sequence(3, 4));
  const HiddenTokens again = Hide(mask, tokens, Philox(5), 3, ids);
  EXPECT_EQ(again.shown, hidden.shown);
  EXPECT_EQ(again.columns, hidden.columns);
  EXPECT_NE(Hide(mask, tokens, Philox(5), 4, ids).columns, hidden.columns);
  EXPECT_NE(Hide(mask, tokens, Philox(6), 3, ids).columns, hidden.columns);
}

TEST(HiddenTokensTest, EvaluationsHideByTheSequenceAlone) {
  const std::vector<uint32_t> ids = Sequence(10, 10), others = Sequence(11, 10);
  EXPECT_EQ(EvaluationKey(ids)(0, 0), EvaluationKey(Sequence(10, 10))(0, 0));
  EXPECT_NE(EvaluationKey(ids)(0, 0), EvaluationKey(others)(0, 0));
}

TEST(HiddenTokensTest, OneIsHiddenAtLeastAndAllAtMost) {
  const EncoderTokens tokens = Tokens();
  EXPECT_EQ(Hide(Mask(0.01, 1, 0), tokens, Philox(1), 0, Sequence(1, 1)).columns.size(), 1u);
  const std::vector<uint32_t> ids = Sequence(3, 2);
  const HiddenTokens all = Hide(Mask(1, 1, 0), tokens, Philox(1), 0, ids);
  EXPECT_THAT(all.columns, ElementsAre(1, 2, 3, 5, 6));
  EXPECT_THAT(all.shown, ElementsAre(41, 99, 99, 99, 98, 99, 99, 98));
  EXPECT_TRUE(Hide(Mask(1, 1, 0), tokens, Philox(1), 0, {41, 98}).columns.empty());
}

TEST(HiddenTokensTest, TheSecondPieceBeginsBehindTheFirstSeparator) {
  EXPECT_THAT(PiecesOf(Tokens(), Sequence(2, 1)), ElementsAre(0, 0, 0, 0, 1, 1));
  EXPECT_THAT(PiecesOf(Tokens(), {41, 5, 98}), ElementsAre(0, 0, 0));
}

}  // namespace
}  // namespace millrace::text
