#include "text/batches.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::text {
namespace {

using ::testing::HasSubstr;

TEST(Permutation, IsABijectionThatDependsOnTheKey) {
  for (const uint64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097}) {
    Permutation permutation(size, Philox(5));
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    EXPECT_EQ(seen.size(), size);
    EXPECT_EQ(*seen.rbegin(), size - 1);
  }
  int same = 0, fixed = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same += Permutation(1000, Philox(1))(i) == Permutation(1000, Philox(2))(i);
    fixed += Permutation(1000, Philox(1))(i) == i;
  }
  EXPECT_LT(same, 12);  // about 1 by chance
  EXPECT_LT(fixed, 12);
}

// A store of characters in which a token's place can be told from a run of tokens.
class BatchesTest : public ::testing::Test {
 protected:
  std::shared_ptr<const TokenStore> Store(int characters, double held_out, const std::string& tokenizer = "char") {
    std::string text;
    for (int i = 0; static_cast<int>(text.size()) < characters; ++i) absl::StrAppend(&text, i, ";");
    text.resize(static_cast<size_t>(characters));
    folder_.Write("a.txt", text);
    v1::JobSpec job;
    job.mutable_data()->add_sources()->set_path("a.txt");
    job.mutable_data()->set_held_out(held_out);
    job.mutable_data()->mutable_split()->set_order("file");
    job.mutable_tokenizer()->set_type(tokenizer);
    job.mutable_tokenizer()->set_vocab_size(280);
    const auto report = PrepareData(job, folder_.path(), folder_ / "out");
    EXPECT_OK(report);
    auto store = TokenStore::Open(folder_ / "out");
    EXPECT_OK(store);
    return *store;
  }
  static std::vector<uint32_t> Ids(const TokenFile& file, uint64_t begin, uint64_t end) {
    std::vector<uint32_t> ids;
    for (uint64_t i = begin; i < end; ++i) ids.push_back(file[i]);
    return ids;
  }
  static Batches Make(std::shared_ptr<const TokenStore> store, const BatchOptions& options) {
    auto batches = Batches::Create(std::move(store), options);
    EXPECT_OK(batches);
    return *std::move(batches);
  }

  TemporaryFolder folder_;
};

TEST_F(BatchesTest, AnEpochIsEveryWindowOnceFromOneOffset) {
  const auto store = Store(6000, 0.1);
  const Batches batches = Make(store, {.seed = 3, .phase = 0, .context = 20, .global_batch = 6, .microbatch = 2});
  EXPECT_EQ(batches.windows(), 5400u / 20 - 1);
  std::map<std::vector<uint32_t>, uint64_t> starts;  // windows of 21 characters of "0;1;2;…" are distinct
  for (uint64_t i = 0; i + 21 <= store->train().size(); ++i) starts[Ids(store->train(), i, i + 21)] = i;
  ASSERT_EQ(starts.size(), store->train().size() - 20);
  std::set<uint64_t> offsets;
  std::vector<uint64_t> order[4];
  for (uint64_t sequence = 0; sequence < 4 * batches.windows(); ++sequence) {
    const uint64_t row = sequence % 6;
    const TokenBatch batch = batches.Training(sequence / 6, static_cast<uint32_t>(row / 2));
    ASSERT_EQ(batch.rows, 2u);
    ASSERT_EQ(batch.columns, 21u);
    ASSERT_EQ(batch.tokens.size(), 42u);
    EXPECT_EQ(batch.bytes, 40u);
    const auto begin = batch.tokens.begin() + static_cast<ptrdiff_t>(row % 2 * 21);
    const auto start = starts.find(std::vector<uint32_t>(begin, begin + 21));
    ASSERT_NE(start, starts.end()) << "a window that is not in the train text";
    order[sequence / batches.windows()].push_back(start->second);
  }
  for (std::vector<uint64_t>& epoch : order) {
    EXPECT_FALSE(std::is_sorted(epoch.begin(), epoch.end()));
    std::sort(epoch.begin(), epoch.end());
    EXPECT_LT(epoch[0], 20u);
    offsets.insert(epoch[0]);
    for (size_t i = 0; i < epoch.size(); ++i) EXPECT_EQ(epoch[i], epoch[0] + 20 * i);
  }
  EXPECT_GT(offsets.size(), 1u);
}

TEST_F(BatchesTest, AreAFunctionOfSeedPhaseAndStepNotOfMicrobatchSize) {
  const auto store = Store(3000, 0.1);
  const BatchOptions options = {.seed = 3, .phase = 0, .context = 16, .global_batch = 8, .microbatch = 8};
  const std::vector<uint32_t> tokens = Make(store, options).Training(5, 0).tokens;
  EXPECT_EQ(Make(store, options).Training(5, 0).tokens, tokens);
  BatchOptions other = options;
  other.microbatch = 2;
  std::vector<uint32_t> pieces;
  for (uint32_t i = 0; i < 4; ++i) {
    const std::vector<uint32_t> piece = Make(store, other).Training(5, i).tokens;
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  EXPECT_EQ(pieces, tokens);
  other = options;
  other.seed = 4;
  EXPECT_NE(Make(store, other).Training(5, 0).tokens, tokens);
  other = options;
  other.phase = 1;
  EXPECT_NE(Make(store, other).Training(5, 0).tokens, tokens);
  EXPECT_NE(Make(store, options).Training(6, 0).tokens, tokens);
}

TEST_F(BatchesTest, KeepTheirOrderFromBuildToBuild) {
  // Computed by the definition in a few lines of Python. Digests of trained models depend on it: changing it is
  // changing every result.
  Permutation permutation(1000, Philox(42));
  EXPECT_EQ(std::vector<uint64_t>({permutation(0), permutation(1), permutation(2), permutation(999)}),
            std::vector<uint64_t>({572, 661, 809, 825}));
}

TEST_F(BatchesTest, EvaluationCoversTheHeldOutTextOnce) {
  for (const std::string tokenizer : {"char", "bpe"}) {
    const auto store = Store(6000, 0.1, tokenizer);
    for (const uint32_t context : {7, 16, 599, 10000}) {
      if (context > store->train().size() - 1) continue;
      const Batches batches = Make(store, {.seed = 1, .context = context, .global_batch = 6, .microbatch = 3});
      uint64_t at = 1, bytes = 0, predictions = 0;
      for (uint64_t i = 0; i < batches.evaluation_microbatches(); ++i) {
        const TokenBatch batch = batches.Evaluation(i);
        ASSERT_EQ(batch.tokens.size(), uint64_t{batch.rows} * batch.columns);
        for (uint32_t row = 0; row < batch.rows; ++row) {
          for (uint32_t column = 0; column < batch.columns; ++column) {
            ASSERT_EQ(batch.tokens[row * batch.columns + column], store->held_out()[at - 1 + column]);
          }
          at += batch.columns - 1;
        }
        bytes += batch.bytes;
        predictions += batch.predictions();
      }
      EXPECT_EQ(at, store->held_out().size());
      EXPECT_EQ(predictions, batches.evaluation_predictions());
      EXPECT_EQ(predictions, store->held_out().size() - 1);
      EXPECT_EQ(bytes, batches.evaluation_bytes());
      // With <|endoftext|> in front every byte is predicted; without it the first character is not.
      EXPECT_EQ(bytes, store->report().held_out_bytes - (tokenizer == "char" ? 1 : 0));
    }
  }
}

TEST_F(BatchesTest, EvaluationStopsAtItsLimit) {
  const auto store = Store(6000, 0.1);
  const Batches batches =
      Make(store, {.seed = 1, .context = 16, .global_batch = 4, .microbatch = 4, .max_evaluation_tokens = 100});
  EXPECT_EQ(batches.evaluation_predictions(), 100u);
  ASSERT_EQ(batches.evaluation_microbatches(), 3u);
  EXPECT_EQ(batches.Evaluation(0).predictions(), 64u);
  EXPECT_EQ(batches.Evaluation(1).predictions(), 32u);
  EXPECT_EQ(batches.Evaluation(2).predictions(), 4u);
}

TEST_F(BatchesTest, AContextLargerThanTheTextIsAnErrorThatSaysWhatFits) {
  const auto store = Store(100, 0.1);
  const auto batches = Batches::Create(store, {.seed = 1, .context = 90, .global_batch = 4, .microbatch = 4});
  ASSERT_FALSE(batches.ok());
  EXPECT_THAT(std::string(batches.status().message()), HasSubstr("at most 89"));
  const Batches largest = Make(store, {.seed = 1, .context = 89, .global_batch = 4, .microbatch = 4});
  EXPECT_EQ(largest.windows(), 1u);
  EXPECT_EQ(largest.Training(9, 0).tokens.size(), 360u);
  EXPECT_FALSE(Batches::Create(store, {.seed = 1, .context = 8, .global_batch = 4, .microbatch = 3}).ok());
}

}  // namespace
}  // namespace millrace::text
