#include "text/pair_batches.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/sentence_pairs.h"
#include "text/temporary_folder.h"

namespace millrace::text {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kEnd = 0, kPad = 1, kBegin = 2, kSeparator = 3, kMask = 4, kFirst = 10;

EncoderTokens Tokens() {
  return *EncoderTokens::Create(
      {{"<|endoftext|>", kEnd}, {"[PAD]", kPad}, {"[CLS]", kBegin}, {"[SEP]", kSeparator}, {"[MASK]", kMask}}, 100'000);
}

// Documents in which every token says where it is.
std::vector<uint32_t> Documents(const std::vector<uint32_t>& lengths) {
  std::vector<uint32_t> text;
  for (const uint32_t length : lengths) {
    text.push_back(kEnd);
    for (uint32_t i = 0; i < length; ++i) text.push_back(kFirst + static_cast<uint32_t>(text.size()));
  }
  return text;
}

SentencePairs Pairs(const std::vector<uint32_t>& text, uint32_t context, bool pairs) {
  auto made = SentencePairs::Create([&text](uint64_t index) { return text[index]; }, text.size(),
                                    {context, pairs, kEnd}, Tokens(), "test");
  EXPECT_OK(made);
  return *std::move(made);
}

// A and B of a sequence, checking its shape.
struct Pieces {
  std::vector<uint32_t> first, second;
};
Pieces PiecesOfRow(const SentencePairs::Row& row, uint32_t context) {
  EXPECT_LE(row.ids.size(), context);
  EXPECT_EQ(row.ids.front(), kBegin);
  EXPECT_EQ(row.ids.back(), kSeparator);
  const auto middle = std::find(row.ids.begin(), row.ids.end(), kSeparator);
  EXPECT_EQ(std::count(row.ids.begin(), row.ids.end(), kSeparator), 2);
  Pieces pieces = {{row.ids.begin() + 1, middle}, {middle + 1, row.ids.end() - 1}};
  for (const auto* piece : {&pieces.first, &pieces.second}) {
    EXPECT_FALSE(piece->empty());
    // A run of the text, within a document: tokens that count on.
    for (size_t i = 1; i < piece->size(); ++i) EXPECT_EQ((*piece)[i], (*piece)[0] + i);
  }
  return pieces;
}

TEST(SentencePairsTest, HalfOfTheSecondPiecesFollowAndTheOthersAreFromElsewhere) {
  const std::vector<uint32_t> text = Documents({200, 57, 3, 1, 1000, 40});
  constexpr uint32_t kContext = 23;
  const SentencePairs pairs = Pairs(text, kContext, true);
  // Parts of 20: 10, 3, 1 (of 3), none (of 1), 50, 2.
  ASSERT_EQ(pairs.size(), 66u);
  int follow = 0;
  std::set<uint32_t> elsewhere;
  std::set<size_t> cuts;
  constexpr uint64_t kTimes = 60;
  for (uint64_t time = 0; time < kTimes; ++time) {
    for (uint64_t part = 0; part < pairs.size(); ++part) {
      const SentencePairs::Row row = pairs.Make(part, Philox(time).Derive(part));
      const Pieces pieces = PiecesOfRow(row, kContext);
      follow += row.follows;
      if (pairs.TokensOf(part) == 20) {
        // Whether B follows cannot be told from how long it is.
        EXPECT_EQ(pieces.first.size() + pieces.second.size(), 20u);
        cuts.insert(pieces.first.size());
      }
      const bool adjacent = pieces.second[0] == pieces.first.back() + 1;
      EXPECT_EQ(row.follows, adjacent) << time << " " << part;
      if (!row.follows) elsewhere.insert(pieces.second[0]);
    }
  }
  const double all = static_cast<double>(kTimes * pairs.size());
  EXPECT_NEAR(follow / all, 0.5, 5 * 0.5 / std::sqrt(all));
  EXPECT_EQ(cuts.size(), 11u);  // 5 … 15
  EXPECT_GT(elsewhere.size(), 500u);
}

TEST(SentencePairsTest, WithoutPairsEveryTokenComesOnce) {
  const std::vector<uint32_t> text = Documents({200, 57, 1});
  const SentencePairs pairs = Pairs(text, 22, false);
  std::vector<uint32_t> seen;
  for (uint64_t part = 0; part < pairs.size(); ++part) {
    const SentencePairs::Row row = pairs.Make(part, Philox(1));
    EXPECT_EQ(row.ids.front(), kBegin);
    EXPECT_EQ(row.ids.back(), kSeparator);
    EXPECT_LE(row.ids.size(), 22u);
    seen.insert(seen.end(), row.ids.begin() + 1, row.ids.end() - 1);
  }
  std::vector<uint32_t> expected;
  for (const uint32_t id : text) {
    if (id != kEnd) expected.push_back(id);
  }
  EXPECT_EQ(seen, expected);
}

TEST(SentencePairsTest, WhatIsTooShortIsRefused) {
  const std::vector<uint32_t> text = Documents({20});
  const auto message = [&](uint32_t context, bool pairs, uint64_t count) {
    return std::string(SentencePairs::Create([&text](uint64_t index) { return text[index]; }, count,
                                             {context, pairs, kEnd}, Tokens(), "held-out")
                           .status()
                           .message());
  };
  EXPECT_THAT(message(4, true, text.size()), HasSubstr("at least 5"));
  EXPECT_THAT(message(2, false, text.size()), HasSubstr("at least 3"));
  EXPECT_THAT(message(23, true, text.size()), HasSubstr("the held-out text has 21 tokens, of which 1 of the 2"));
  EXPECT_THAT(message(23, false, 1), HasSubstr("of which 0 of the 1"));
}

TEST(SentencePairsTest, RowsAreFilledUpWithPaddingOfItsOwn) {
  const TokenBatch batch = BatchOfRows(
      {{{kBegin, 10, kSeparator, 11, kSeparator}, true}, {{kBegin, 12, 13, kSeparator, 14, 15, kSeparator}, false}},
      /*pairs=*/true, Tokens());
  EXPECT_EQ(batch.rows, 2u);
  EXPECT_EQ(batch.columns, 7u);
  EXPECT_THAT(batch.tokens, ::testing::ElementsAre(kBegin, 10, kSeparator, 11, kSeparator, kPad, kPad,  //
                                                   kBegin, 12, 13, kSeparator, 14, 15, kSeparator));
  EXPECT_THAT(batch.starts, ::testing::ElementsAre(0, 0, 0, 0, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.row_values, ::testing::ElementsAre(1.0f, 0.0f));
}

class PairBatchesTest : public ::testing::Test {
 protected:
  std::shared_ptr<const TokenStore> Store() {
    std::string text;
    for (int i = 0; text.size() < 6000; ++i) absl::StrAppend(&text, i, ";");
    folder_.Write("a.txt", text);
    v1::JobSpec job;
    job.mutable_data()->add_sources()->set_path("a.txt");
    job.mutable_data()->set_held_out(0.1);
    job.mutable_data()->mutable_split()->set_order("file");
    job.mutable_tokenizer()->set_type("char");
    for (const char* token : {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}) job.mutable_tokenizer()->add_special_tokens(token);
    const auto report = PrepareData(job, folder_.path(), folder_ / "out");
    EXPECT_OK(report);
    return *TokenStore::Open(folder_ / "out");
  }
  static std::vector<std::vector<uint32_t>> Rows(const TokenBatch& batch) {
    std::vector<std::vector<uint32_t>> rows;
    for (uint32_t row = 0; row < batch.rows; ++row) {
      const auto begin = batch.tokens.begin() + row * batch.columns;
      rows.emplace_back(begin, begin + batch.columns);
    }
    return rows;
  }

  TemporaryFolder folder_;
};

TEST_F(PairBatchesTest, AStepIsTheSameHoweverItIsCutIntoMicrobatches) {
  const auto store = Store();
  BatchOptions options = {.seed = 3, .phase = 1, .context = 32, .global_batch = 12, .microbatch = 12};
  const auto whole = *PairBatches::Create(store, options, true);
  options.microbatch = 4;
  const auto cut = *PairBatches::Create(store, options, true);
  for (const uint64_t step : {0, 7, 100}) {
    const TokenBatch together = whole->Training(step, 0);
    std::vector<std::vector<uint32_t>> rows;
    std::vector<float> follows;
    // In no order.
    for (const uint32_t index : {2, 0, 1}) {
      const TokenBatch batch = cut->Training(step, index);
      EXPECT_EQ(batch.tokens, cut->Training(step, index).tokens);
    }
    for (uint32_t index = 0; index < 3; ++index) {
      const TokenBatch batch = cut->Training(step, index);
      for (auto& row : Rows(batch)) rows.push_back(row);
      follows.insert(follows.end(), batch.row_values.begin(), batch.row_values.end());
    }
    EXPECT_EQ(follows, together.row_values);
    EXPECT_EQ(rows, Rows(together));
    EXPECT_EQ(whole->training_predictions(step), 12u * 29);
  }
  EXPECT_NE(whole->Training(0, 0).tokens, whole->Training(1, 0).tokens);
  for (BatchOptions other : {options, options}) {
    other.microbatch = 12;
    other.phase = 2;
    EXPECT_NE((*PairBatches::Create(store, other, true))->Training(0, 0).tokens, whole->Training(0, 0).tokens);
  }
}

TEST_F(PairBatchesTest, AnEpochTakesEveryPartOnceAndTheNextCutsItAnew) {
  const auto store = Store();
  const BatchOptions options = {.seed = 3, .context = 30, .global_batch = 1, .microbatch = 1};
  const auto batches = *PairBatches::Create(store, options, false);
  const uint64_t parts = batches->StepsOf(1);
  EXPECT_EQ(parts, (store->train().size() + 27) / 28);
  std::set<std::vector<uint32_t>> seen;
  for (uint64_t step = 0; step < parts; ++step) seen.insert(batches->Training(step, 0).tokens);
  EXPECT_EQ(seen.size(), parts);
  const auto pairs = *PairBatches::Create(store, options, true);
  std::set<std::vector<uint32_t>> first, second;
  const uint64_t of_epoch = pairs->StepsOf(1);
  for (uint64_t step = 0; step < of_epoch; ++step) {
    first.insert(pairs->Training(step, 0).tokens);
    second.insert(pairs->Training(of_epoch + step, 0).tokens);
  }
  EXPECT_NE(first, second);
}

TEST_F(PairBatchesTest, EvaluationsAreAlikeAndEndWhereTheyAreTold) {
  const auto store = Store();
  BatchOptions options = {.seed = 3, .context = 32, .global_batch = 4, .microbatch = 4};
  const auto all = *PairBatches::Create(store, options, true);
  EXPECT_EQ(all->evaluation_predictions(), (store->held_out().size() + 28) / 29);
  uint64_t rows = 0;
  for (uint64_t index = 0; index < all->evaluation_microbatches(); ++index) {
    const TokenBatch batch = all->Evaluation(index);
    EXPECT_EQ(batch.tokens, all->Evaluation(index).tokens);
    rows += batch.rows;
  }
  EXPECT_EQ(rows, all->evaluation_predictions());
  options.max_evaluation_tokens = 100;
  EXPECT_EQ((*PairBatches::Create(store, options, true))->evaluation_predictions(), 3u);
}

TEST_F(PairBatchesTest, ATokenizerWithoutItsTokensIsRefused) {
  folder_.Write("b.txt", std::string(1000, 'a') + std::string(1000, 'b'));
  v1::JobSpec job;
  job.mutable_data()->add_sources()->set_path("b.txt");
  job.mutable_data()->set_held_out(0.2);
  job.mutable_data()->mutable_split()->set_order("file");
  job.mutable_tokenizer()->set_type("char");
  ASSERT_OK(PrepareData(job, folder_.path(), folder_ / "plain"));
  const BatchOptions options = {.seed = 3, .context = 32, .global_batch = 4, .microbatch = 4};
  EXPECT_THAT(PairBatches::Create(*TokenStore::Open(folder_ / "plain"), options, true).status().message(),
              HasSubstr("[CLS]"));
}

}  // namespace
}  // namespace millrace::text
