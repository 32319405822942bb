#include "text/example_batches.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/example_fixture.h"

namespace millrace::text {
namespace {

using ::testing::HasSubstr;

class ExampleBatchesTest : public ExampleFixture {
 protected:
  // `count` examples of different lengths, each with its number in prompt and response, the last tenth held out.
  std::shared_ptr<const ExampleStore> Numbered(int count, uint32_t context = 100) {
    std::string lines;
    for (int i = 0; i < count; ++i) {
      absl::StrAppend(&lines, R"({"prompt": "p)", i, R"(", "response": ")", i, ".",
                      std::string(static_cast<size_t>(i * 37 % 60), 'r'), "\"}\n");
    }
    return Store(ExampleKind::kSft, lines, context, 0.1);
  }
  static std::unique_ptr<ExampleBatches> Make(std::shared_ptr<const ExampleStore> store,
                                              const ExampleBatchOptions& options,
                                              std::shared_ptr<const TokenStore> replay = nullptr) {
    auto batches = ExampleBatches::Create(std::move(store), options, std::move(replay));
    EXPECT_OK(batches);
    return *std::move(batches);
  }
  // The sequences of a batch, by where they start; padding left out.
  static std::vector<std::vector<std::string>> Sequences(const ExampleStore& store, const TokenBatch& batch) {
    std::vector<std::vector<std::string>> rows(batch.rows);
    for (uint32_t row = 0; row < batch.rows; ++row) {
      std::map<uint32_t, std::string> by_start;
      std::map<uint32_t, bool> scored;
      for (uint32_t column = 0; column < batch.columns; ++column) {
        const size_t at = size_t{row} * batch.columns + column;
        const uint32_t start = batch.starts[at];
        EXPECT_LE(start, column);
        if (start == column) {
          EXPECT_EQ(batch.scored[at], 0) << "the first token of a sequence";
        } else {
          EXPECT_EQ(batch.starts[at - 1], start) << "a sequence is a run of columns";
        }
        const bool was = scored[start];
        if ((batch.scored[at] != 0) != was) by_start[start] += was ? ">" : "<";
        scored[start] = batch.scored[at] != 0;
        by_start[start] +=
            store.tokenizer().IsSpecial(batch.tokens[at]) ? "$" : store.tokenizer().TokenBytes(batch.tokens[at]);
      }
      for (auto& [start, text] : by_start) {
        const bool padding = text.find_first_not_of('$') == std::string::npos;
        if (!padding) rows[row].push_back(text + (scored[start] ? ">" : ""));
      }
    }
    return rows;
  }
  static std::multiset<std::string> All(const ExampleStore& store, const ExampleFile& part) {
    std::multiset<std::string> all;
    for (uint64_t i = 0; i < part.size(); ++i) all.insert(Show(store, part, part[i].first, part[i].length));
    return all;
  }
};

TEST_F(ExampleBatchesTest, AnEpochIsEveryExampleOnceWholeAndApart) {
  const auto store = Numbered(100);
  for (const bool packing : {true, false}) {
    const auto batches =
        Make(store, {.seed = 3, .context = 100, .global_batch = 1, .microbatch = 1, .packing = packing});
    const uint64_t rows = batches->StepsOf(1);
    EXPECT_EQ(rows == 90, !packing) << rows;
    std::multiset<std::string> seen;
    std::vector<std::string> order;
    for (uint64_t step = 0; step < rows; ++step) {
      const TokenBatch batch = batches->Training(step, 0);
      ASSERT_EQ(batch.rows, 1u);
      ASSERT_LE(batch.columns, 101u);
      EXPECT_EQ(batch.predictions(), batches->training_predictions(step));
      EXPECT_TRUE(batch.row_values.empty());
      const auto sequences = Sequences(*store, batch);
      for (const std::string& one : sequences[0]) {
        seen.insert(one);
        order.push_back(one);
      }
    }
    EXPECT_EQ(seen, All(*store, store->train()));
    std::vector<std::string> second;
    for (uint64_t step = rows; step < batches->StepsOf(2); ++step) {
      const auto sequences = Sequences(*store, batches->Training(step, 0));
      second.insert(second.end(), sequences[0].begin(), sequences[0].end());
    }
    EXPECT_NE(order, second) << "an order of its own for each epoch";
    EXPECT_EQ(std::multiset<std::string>(second.begin(), second.end()), seen);
  }
}

// Rows are filled up with the token that ends answers: which is learnt is told by place, not by id.
TEST_F(ExampleBatchesTest, TheEndOfAnAnswerIsLearntAndPaddingIsNot) {
  const auto store = Numbered(100);
  ASSERT_EQ(store->end_of_turn(), 0u);
  const auto batches = Make(store, {.seed = 3, .context = 100, .global_batch = 8, .microbatch = 8, .packing = false});
  const TokenBatch batch = batches->Training(0, 0);
  uint32_t padded = 0;
  for (uint32_t row = 0; row < batch.rows; ++row) {
    uint32_t last_scored = 0;
    for (uint32_t column = 0; column < batch.columns; ++column) {
      if (batch.scored[size_t{row} * batch.columns + column] != 0) last_scored = column;
    }
    EXPECT_EQ(batch.tokens[size_t{row} * batch.columns + last_scored], store->end_of_turn());
    for (uint32_t column = last_scored + 1; column < batch.columns; ++column, ++padded) {
      EXPECT_EQ(batch.tokens[size_t{row} * batch.columns + column], store->end_of_turn());
      EXPECT_EQ(batch.starts[size_t{row} * batch.columns + column], last_scored + 1);
    }
  }
  EXPECT_GT(padded, 0u) << "rows of different lengths are wanted";
}

TEST_F(ExampleBatchesTest, PackingLeavesLittleRoom) {
  const auto store = Numbered(500);
  const auto batches = Make(store, {.seed = 3, .context = 200, .global_batch = 1, .microbatch = 1});
  const double least = static_cast<double>(store->train().tokens()) / 201;
  EXPECT_GE(static_cast<double>(batches->StepsOf(1)), least);
  EXPECT_LE(static_cast<double>(batches->StepsOf(1)), 1.1 * least);
}

TEST_F(ExampleBatchesTest, AreAFunctionOfSeedPhaseAndStepNotOfMicrobatchesOrTheOrderOfAsking) {
  const auto store = Numbered(60);
  const ExampleBatchOptions options = {.seed = 3, .context = 100, .global_batch = 12, .microbatch = 12};
  const auto whole = Make(store, options);
  const auto later = whole->Training(7, 0);
  EXPECT_EQ(Sequences(*store, Make(store, options)->Training(7, 0)), Sequences(*store, later));
  EXPECT_EQ(whole->Training(0, 0).tokens, Make(store, options)->Training(0, 0).tokens);
  ExampleBatchOptions other = options;
  other.microbatch = 4;
  std::vector<std::vector<std::string>> pieces;
  uint64_t predictions = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    const TokenBatch batch = Make(store, other)->Training(7, i);
    predictions += batch.predictions();
    for (auto& row : Sequences(*store, batch)) pieces.push_back(row);
  }
  EXPECT_EQ(pieces, Sequences(*store, later));
  EXPECT_EQ(predictions, whole->training_predictions(7));
  EXPECT_EQ(predictions, later.predictions());
  for (const bool seed : {true, false}) {
    other = options;
    other.seed += seed ? 1 : 0;
    other.phase += seed ? 0 : 1;
    EXPECT_NE(Make(store, other)->Training(7, 0).tokens, later.tokens);
  }
}

TEST_F(ExampleBatchesTest, PairsAreTwoRowsWithEqualPromptsAndTheirMargin) {
  std::string lines;
  for (int i = 0; i < 20; ++i) {
    absl::StrAppend(&lines, R"({"prompt": "p)", i, R"(", "chosen": "good", "rejected": "very bad", )",
                    i % 4 == 0 ? R"("tie": true})" : absl::StrCat("\"margin\": ", i, "}"), "\n");
  }
  const auto store = Store(ExampleKind::kPairs, lines);
  const auto batches = Make(store, {.seed = 1, .context = 100, .global_batch = 5, .microbatch = 5});
  EXPECT_EQ(batches->StepsOf(1), 2u);
  std::set<std::string> seen;
  for (const uint64_t step : {0, 1}) {
    const TokenBatch batch = batches->Training(step, 0);
    ASSERT_EQ(batch.rows, 10u);
    ASSERT_EQ(batch.row_values.size(), 10u);
    EXPECT_EQ(batch.predictions(), batches->training_predictions(step));
    const auto rows = Sequences(*store, batch);
    for (size_t row = 0; row < 10; row += 2) {
      ASSERT_EQ(rows[row].size(), 1u);
      const std::string chosen = rows[row][0], rejected = rows[row + 1][0];
      EXPECT_THAT(chosen, ::testing::EndsWith(":< good$>"));
      EXPECT_THAT(rejected, HasSubstr(":< very bad$>"));
      EXPECT_EQ(chosen.substr(0, chosen.find('<')), rejected.substr(0, rejected.find('<')));
      const int number = std::stoi(chosen.substr(7));
      EXPECT_EQ(batch.row_values[row], number % 4 == 0 ? kTie : static_cast<float>(number));
      EXPECT_EQ(batch.row_values[row + 1], batch.row_values[row]);
      seen.insert(chosen);
    }
  }
  EXPECT_EQ(seen.size(), 10u);
  EXPECT_EQ(batches->evaluation_microbatches(), 2u);
  EXPECT_EQ(batches->Evaluation(1).rows, 10u);
}

TEST_F(ExampleBatchesTest, LabelledRowsCarryTheirLabel) {
  std::string lines;
  for (int i = 0; i < 8; ++i)
    absl::StrAppend(&lines, R"({"prompt": "p)", i, R"(", "completion": "c", "label": )", i % 3 == 0 ? "true" : "false",
                    "}\n");
  const auto store = Store(ExampleKind::kLabelled, lines);
  const auto batches = Make(store, {.seed = 1, .context = 100, .global_batch = 4, .microbatch = 2});
  for (const uint32_t index : {0, 1}) {
    const TokenBatch batch = batches->Training(0, index);
    const auto rows = Sequences(*store, batch);
    ASSERT_EQ(batch.row_values.size(), 2u);
    for (size_t row = 0; row < 2; ++row) {
      ASSERT_EQ(rows[row].size(), 1u);
      EXPECT_EQ(batch.row_values[row], std::stoi(rows[row][0].substr(7)) % 3 == 0 ? 1 : -1);
    }
  }
}

TEST_F(ExampleBatchesTest, EvaluationCoversTheHeldOutExamplesOnce) {
  const auto store = Numbered(100);
  for (const bool packing : {true, false}) {
    ExampleBatchOptions options = {.seed = 3, .context = 100, .global_batch = 4, .microbatch = 4, .packing = packing};
    auto batches = Make(store, options);
    std::multiset<std::string> seen;
    uint64_t predictions = 0, bytes = 0;
    for (uint64_t i = 0; i < batches->evaluation_microbatches(); ++i) {
      const TokenBatch batch = batches->Evaluation(i);
      predictions += batch.predictions();
      bytes += batch.bytes;
      for (const auto& row : Sequences(*store, batch)) seen.insert(row.begin(), row.end());
    }
    EXPECT_EQ(seen, All(*store, store->held_out()));
    EXPECT_EQ(predictions, batches->evaluation_predictions());
    EXPECT_EQ(predictions, store->held_out().scored());
    EXPECT_EQ(bytes, batches->evaluation_bytes());
    EXPECT_EQ(bytes, predictions - store->held_out().size()) << "a byte a token, but for the ends of turns";
    options.max_evaluation_tokens = 5;
    batches = Make(store, options);
    EXPECT_EQ(batches->evaluation_microbatches(), 1u);
    EXPECT_EQ(batches->evaluation_predictions(), store->held_out()[0].scored);
  }
}

TEST_F(ExampleBatchesTest, ReplayTakesItsShareOfEveryStretchOfRows) {
  const auto store = Numbered(100);
  folder_.Write("old.txt", std::string(3000, 'o'));
  v1::JobSpec job;
  *job.mutable_data() = Data("old.txt", 0.1);
  folder_.Write("tokenizer.json", tokenizer_->ToJson());
  job.mutable_tokenizer()->set_path("tokenizer.json");
  ASSERT_OK(PrepareData(job, folder_.path(), folder_ / "text"));
  const auto text = *TokenStore::Open(folder_ / "text");
  ExampleBatchOptions options = {.seed = 3, .context = 100, .global_batch = 10, .microbatch = 5, .replay = 0.3};
  const auto batches = Make(store, options, text);
  options.replay = 0;
  const auto without = Make(store, options);
  std::multiset<std::string> seen;
  uint64_t steps = batches->StepsOf(1);
  EXPECT_EQ(steps, (Make(store, {.seed = 3, .context = 100, .global_batch = 1, .microbatch = 1})->StepsOf(1) + 6) / 7);
  for (uint64_t step = 0; step < steps; ++step) {
    int replayed = 0;
    uint64_t predictions = 0;
    for (const uint32_t index : {0, 1}) {
      const TokenBatch batch = batches->Training(step, index);
      predictions += batch.predictions();
      for (const auto& row : Sequences(*store, batch)) {
        if (row[0].find("User") == std::string::npos) {
          ++replayed;
          EXPECT_EQ(row.size(), 1u);
          EXPECT_THAT(row[0], ::testing::MatchesRegex("[$o]<[$o]+>"));
          EXPECT_EQ(row[0].size(), 103u) << "a whole window of context + 1 tokens";
        } else {
          seen.insert(row.begin(), row.end());
        }
      }
    }
    EXPECT_EQ(replayed, 3);
    EXPECT_EQ(predictions, batches->training_predictions(step));
  }
  for (const std::string& one : All(*store, store->train())) EXPECT_GE(seen.count(one), 1u) << one;
  EXPECT_NE(batches->fingerprint(), without->fingerprint());
  EXPECT_EQ(batches->evaluation_predictions(), without->evaluation_predictions());
}

TEST_F(ExampleBatchesTest, PromptsComeOnceAnEpochWithTheirAnswers) {
  std::string lines;
  for (int i = 0; i < 30; ++i) absl::StrAppend(&lines, R"({"prompt": "p)", i, R"(", "answer": "a)", i, "\"}\n");
  const auto store = Store(ExampleKind::kPrompts, lines, 100, 0.2);
  const auto prompts = PromptOrder::Create(store, 1, 2);
  ASSERT_OK(prompts);
  ASSERT_EQ(prompts->training_prompts(), 24u);
  std::vector<std::string> epochs[2];
  for (uint64_t i = 0; i < 48; ++i) {
    const PromptOrder::Prompt prompt = prompts->Training(i);
    const std::string text = tokenizer_->Decode(prompt.ids);
    EXPECT_EQ(text, absl::StrCat("User: p", prompt.answer.substr(1), "\nAssistant:"));
    EXPECT_EQ(prompt.answer, absl::StrCat("a", prompt.record));
    epochs[i / 24].push_back(text);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  for (auto& epoch : epochs) EXPECT_EQ(std::set<std::string>(epoch.begin(), epoch.end()).size(), 24u);
  EXPECT_EQ(prompts->Evaluation(0).answer, "a24");
  EXPECT_FALSE(ExampleBatches::Create(store, {.context = 100, .global_batch = 1, .microbatch = 1}).ok());
  EXPECT_FALSE(PromptOrder::Create(Numbered(20), 1, 2).ok());
}

TEST_F(ExampleBatchesTest, OptionsOutOfBoundsAreErrors) {
  const auto store = Numbered(20);
  EXPECT_FALSE(ExampleBatches::Create(store, {.context = 100, .global_batch = 4, .microbatch = 3}).ok());
  const auto longer = ExampleBatches::Create(store, {.context = 30, .global_batch = 4, .microbatch = 4});
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr("prepared for a longer context"));
  EXPECT_FALSE(ExampleBatches::Create(store, {.context = 100, .global_batch = 4, .microbatch = 4, .replay = 0.5}).ok());
}

}  // namespace
}  // namespace millrace::text
