// Many continuations at once, against each alone with the objective that training evaluates with.
#include "model/continuation_scores.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/objectives/causal_lm.h"
#include "model/tiny_models.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVocab = 37;
constexpr int64_t kContext = 40;

struct Case {
  std::string family, precision;
};

class ContinuationScores : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    v1::ModelSpec spec = TinySpec(GetParam().family, GetParam().precision);
    spec.set_context(kContext);
    network_ = NewNetwork(spec, kVocab);
    weights_ = RandomWeights(network_->tensors(), 1);
  }

  std::vector<ContinuationScore> Scores(absl::Span<const ContinuationTokens> continuations, int threads = 2) const {
    const kernels::Compute compute(kernels::DetectIsa(), threads);
    auto scores = ScoreContinuations(*network_, compute, weights_.data(), continuations);
    EXPECT_OK(scores);
    return *std::move(scores);
  }

  // log p of the tokens of one sequence that fits the context, but for the first.
  std::vector<float> Alone(const std::vector<uint32_t>& ids) const {
    const auto columns = static_cast<int64_t>(ids.size());
    const kernels::Compute compute(kernels::DetectIsa(), 1);
    CausalLm causal_lm = *CausalLm::Create(network_.get(), &compute, columns - 1, columns - 1, /*for_training=*/false);
    std::vector<float> log_probabilities(ids.size() - 1);
    const auto loss =
        causal_lm.Loss(weights_.data(), {ids.data(), 1, columns}, &NothingToWaitFor, log_probabilities.data());
    EXPECT_OK(loss);
    return log_probabilities;
  }

  std::unique_ptr<Network> network_;
  std::vector<float> weights_;
};
INSTANTIATE_TEST_SUITE_P(Models, ContinuationScores,
                         ::testing::Values(Case{"gpt2", "f32"}, Case{"llama", "f32"}, Case{"llama", "bf16"},
                                           Case{"lstm", "f32"}, Case{"cnn", "f32"}),
                         [](const auto& info) { return info.param.family + "_" + info.param.precision; });

std::vector<uint32_t> Part(const std::vector<uint32_t>& ids, size_t begin, size_t end) {
  return {ids.begin() + static_cast<ptrdiff_t>(begin), ids.begin() + static_cast<ptrdiff_t>(end)};
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Enough for several batches, of lengths from two tokens to the context and one.
std::vector<ContinuationTokens> Many() {
  std::vector<ContinuationTokens> many;
  for (uint64_t i = 0; i < 300; ++i) {
    const size_t size = 2 + Philox(5)(0, i)[0] % kContext, after = 1 + Philox(5)(1, i)[0] % (size - 1);
    const std::vector<uint32_t> ids = RandomIds(100 + i, size, kVocab);
    many.push_back({Part(ids, 0, size - after), Part(ids, size - after, size)});
  }
  return many;
}

TEST_P(ContinuationScores, TogetherHaveTheBitsOfEachAlone) {
  const std::vector<ContinuationTokens> many = Many();
  const std::vector<ContinuationScore> scores = Scores(many);
  ASSERT_EQ(scores.size(), many.size());
  for (size_t i = 0; i < many.size(); ++i) {
    std::vector<uint32_t> ids = many[i].context;
    ids.insert(ids.end(), many[i].ids.begin(), many[i].ids.end());
    const std::vector<float> alone = Alone(ids);
    EXPECT_TRUE(SameBits(scores[i].log_probabilities, absl::MakeConstSpan(alone).subspan(many[i].context.size() - 1)))
        << i;
    EXPECT_EQ(scores[i].cut, 0u);
  }
}

TEST_P(ContinuationScores, DependNeitherOnTheOthersNorOnThreads) {
  const std::vector<ContinuationTokens> many = Many();
  const std::vector<ContinuationScore> scores = Scores(many), others = Scores(many, 3);
  const std::vector<ContinuationScore> few = Scores(absl::MakeConstSpan(many).subspan(10, 7));
  for (size_t i = 0; i < many.size(); ++i) {
    ASSERT_TRUE(SameBits(scores[i].log_probabilities, others[i].log_probabilities)) << i;
  }
  for (size_t i = 0; i < few.size(); ++i) {
    ASSERT_TRUE(SameBits(few[i].log_probabilities, scores[10 + i].log_probabilities)) << i;
  }
}

TEST_P(ContinuationScores, ALongContextLosesItsBeginning) {
  const std::vector<uint32_t> ids = RandomIds(9, kContext + 8, kVocab);
  const size_t before = ids.size() - 3;
  const ContinuationTokens continuation = {Part(ids, 0, before), Part(ids, before, ids.size())};
  const ContinuationScore score = Scores({continuation})[0];
  EXPECT_EQ(score.cut, 7u);
  const std::vector<float> alone = Alone(Part(ids, 7, ids.size()));
  EXPECT_TRUE(SameBits(score.log_probabilities, absl::MakeConstSpan(alone).last(3)));
}

TEST_P(ContinuationScores, ALongContinuationIsScoredInBlocks) {
  const std::vector<uint32_t> ids = RandomIds(9, 3 * kContext + 10, kVocab);
  const ContinuationScore score = Scores({{Part(ids, 0, kContext + 5), Part(ids, kContext + 5, ids.size())}})[0];
  EXPECT_EQ(score.cut, static_cast<uint64_t>(kContext));
  std::vector<float> expected;
  for (size_t begin = kContext; begin < ids.size() - 1; begin += kContext) {
    const std::vector<float> block = Alone(Part(ids, begin, std::min(ids.size(), begin + kContext + 1)));
    expected.insert(expected.end(), block.begin() + (begin == kContext ? 4 : 0), block.end());
  }
  EXPECT_TRUE(SameBits(score.log_probabilities, expected));
}

TEST_P(ContinuationScores, SayWhichContinuationIsWrong) {
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const auto message = [&](std::vector<ContinuationTokens> continuations) {
    const auto scores = ScoreContinuations(*network_, compute, weights_.data(), continuations);
    return std::string(scores.status().message());
  };
  EXPECT_EQ(message({}), "");
  EXPECT_THAT(message({{{1}, {2}}, {{}, {2}}}), HasSubstr("continuation 1 has no token before it"));
  EXPECT_THAT(message({{{1}, {}}}), HasSubstr("continuation 0 has no tokens"));
  EXPECT_THAT(message({{{1}, {2}}, {{1}, {37}}}),
              HasSubstr("continuation 1: token id 37 is not below the vocabulary's 37"));
}

}  // namespace
}  // namespace millrace::model
