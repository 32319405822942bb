// Answers depend on prompt, key and options alone, and their log-probabilities are those that training sees.
#include "model/rollouts.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/objectives/token_scores.h"
#include "model/tiny_models.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVocab = 37;
constexpr int64_t kColumns = 70;

struct Case {
  std::string family, precision;
};

class RolloutsTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    network_ = NewNetwork(TinySpec(GetParam().family, GetParam().precision), kVocab);
    weights_ = RandomWeights(network_->tensors(), 1);
    options_.max_tokens = 68;
    options_.sampling.temperature = 0.8;
    options_.stop = {5, 11};
    // Lengths from one token to nearly the whole, and different numbers of answers, one of them none.
    for (const auto& [length, samples] :
         std::vector<std::pair<size_t, uint64_t>>{{3, 4}, {1, 1}, {66, 3}, {9, 0}, {20, 5}}) {
      Prompt& prompt = prompts_.emplace_back();
      prompt.ids = RandomIds(10 + length, length, kVocab);
      for (uint64_t sample = 0; sample < samples; ++sample) {
        prompt.keys.push_back(Philox(7).Derive(100 * prompts_.size() + sample));
      }
    }
  }

  std::vector<Answer> Sample(int64_t together, absl::Span<const Prompt> prompts) const {
    Rollouts rollouts = *Rollouts::Create(network_.get(), &compute_, together, kColumns);
    const auto answers = rollouts.Sample(weights_.data(), prompts, options_);
    EXPECT_OK(answers);
    return answers.value_or(std::vector<Answer>());
  }

  std::unique_ptr<Network> network_;
  std::vector<float> weights_;
  std::vector<Prompt> prompts_;
  RolloutOptions options_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};
INSTANTIATE_TEST_SUITE_P(Families, RolloutsTest,
                         ::testing::Values(Case{"gpt2", "f32"}, Case{"gpt2", "bf16"}, Case{"llama", "f32"},
                                           Case{"llama", "bf16"}, Case{"mistral", "f32"}, Case{"mistral", "bf16"},
                                           Case{"qwen2", "f32"}, Case{"lstm", "f32"}, Case{"cnn", "bf16"}),
                         [](const auto& info) { return info.param.family + "_" + info.param.precision; });

void ExpectSame(const Answer& one, const Answer& other) {
  EXPECT_EQ(one.ids, other.ids);
  EXPECT_EQ(one.log_probabilities, other.log_probabilities);
  EXPECT_EQ(one.stopped, other.stopped);
}

TEST_P(RolloutsTest, LogProbabilitiesAreTheBitsThatTrainingSees) {
  for (const double temperature : {1.0, 0.8, 0.0}) {
    options_.sampling.temperature = temperature;
    options_.sampling.top_k = 20;  // of the full distribution all the same
    const std::vector<Answer> answers = Sample(4, prompts_);
    ASSERT_EQ(answers.size(), 13u);
    size_t next = 0;
    // All in rows of one length, filled up with what is not scored, and behind another sequence.
    constexpr int64_t kRow = kColumns + 3;
    std::vector<uint32_t> ids, starts;
    std::vector<uint8_t> scored;
    std::vector<float> sampled;
    for (const Prompt& prompt : prompts_) {
      for (size_t sample = 0; sample < prompt.keys.size(); ++sample) {
        const Answer& answer = answers[next++];
        ASSERT_FALSE(answer.ids.empty());
        const size_t begin = ids.size();
        ids.insert(ids.end(), {1, 2});
        ids.insert(ids.end(), prompt.ids.begin(), prompt.ids.end());
        scored.resize(ids.size(), 0);
        ids.insert(ids.end(), answer.ids.begin(), answer.ids.end());
        scored.resize(ids.size(), 1);
        ASSERT_LE(ids.size() - begin, static_cast<size_t>(kRow));
        ids.resize(begin + kRow, 0);
        scored.resize(ids.size(), 0);
        starts.insert(starts.end(), 2, 0);
        starts.resize(ids.size(), 2);
        sampled.insert(sampled.end(), answer.log_probabilities.begin(), answer.log_probabilities.end());
      }
    }
    const auto rows = static_cast<int64_t>(answers.size());
    TokenScores scores = *TokenScores::Create(network_.get(), &compute_, rows * (kRow - 1), kRow - 1, true);
    ASSERT_OK(scores.Forward(weights_.data(), {ids.data(), rows, kRow, 0, starts.data(), scored.data()}, {},
                             &NothingToWaitFor));
    ASSERT_EQ(scores.predictions(), static_cast<int64_t>(sampled.size()));
    std::vector<float> trained(sampled.size());
    scores.Score(temperature > 0 ? static_cast<float>(temperature) : 1.0f, absl::MakeSpan(trained), {});
    EXPECT_EQ(trained, sampled) << temperature;
  }
}

TEST_P(RolloutsTest, AnAnswerDoesNotDependOnWhatGoesOnBesideIt) {
  const std::vector<Answer> answers = Sample(4, prompts_);
  for (const int64_t together : {1, 3, 50}) {
    const std::vector<Answer> again = Sample(together, prompts_);
    ASSERT_EQ(again.size(), answers.size());
    for (size_t i = 0; i < answers.size(); ++i) ExpectSame(again[i], answers[i]);
  }
  // Alone, in the reverse order, from one sampler that has been used before.
  Rollouts rollouts = *Rollouts::Create(network_.get(), &compute_, 2, kColumns);
  size_t next = answers.size();
  for (size_t prompt = prompts_.size(); prompt-- > 0;) {
    for (size_t sample = prompts_[prompt].keys.size(); sample-- > 0;) {
      const Prompt alone = {prompts_[prompt].ids, {prompts_[prompt].keys[sample]}};
      const auto answer = rollouts.Sample(weights_.data(), {&alone, 1}, options_);
      ASSERT_OK(answer);
      ASSERT_EQ(answer->size(), 1u);
      ExpectSame((*answer)[0], answers[--next]);
    }
  }
  // Other keys draw others.
  EXPECT_NE(answers[0].ids, answers[1].ids);
}

TEST_P(RolloutsTest, AnswersEndWhereTheyShould) {
  int stopped = 0;
  for (const int64_t max_tokens : {1, 6, 68}) {
    options_.max_tokens = max_tokens;
    const std::vector<Answer> answers = Sample(4, prompts_);
    size_t next = 0;
    for (const Prompt& prompt : prompts_) {
      for (size_t sample = 0; sample < prompt.keys.size(); ++sample) {
        const Answer& answer = answers[next++];
        const auto room = static_cast<size_t>(kColumns + 1) - prompt.ids.size();
        const size_t limit = std::min(room, static_cast<size_t>(max_tokens));
        ASSERT_EQ(answer.log_probabilities.size(), answer.ids.size());
        for (size_t i = 0; i < answer.ids.size(); ++i) {
          const bool stop = answer.ids[i] == 5 || answer.ids[i] == 11;
          EXPECT_EQ(stop, answer.stopped && i + 1 == answer.ids.size());
        }
        EXPECT_TRUE(answer.stopped || answer.ids.size() == limit);
        EXPECT_LE(answer.ids.size(), limit);
        stopped += answer.stopped ? 1 : 0;
      }
    }
  }
  EXPECT_GT(stopped, 0);
}

TEST_P(RolloutsTest, AnAnswerEndsWhereTheCallerSays) {
  const std::vector<Answer> whole = Sample(4, prompts_);
  options_.ends = [](absl::Span<const uint32_t> ids) { return ids.back() % 4 == 2; };
  const std::vector<Answer> ended = Sample(4, prompts_);
  ASSERT_EQ(ended.size(), whole.size());
  size_t shorter = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    Answer expected = whole[i];
    const auto end = std::find_if(expected.ids.begin(), expected.ids.end(), [](uint32_t id) { return id % 4 == 2; });
    if (end != expected.ids.end()) {
      expected.ids.erase(end + 1, expected.ids.end());
      expected.log_probabilities.resize(expected.ids.size());
      expected.stopped = expected.stopped && expected.ids.size() == whole[i].ids.size();
      shorter += expected.ids.size() < whole[i].ids.size() ? 1 : 0;
    }
    ExpectSame(ended[i], expected);
  }
  EXPECT_GT(shorter, 3u);
}

TEST_P(RolloutsTest, DrawWhatIsProbableAsOftenAsItIs) {
  if (GetParam().precision == "bf16") return;  // the same draws
  Prompt prompt = prompts_[0];
  prompt.keys.clear();
  constexpr int kDraws = 4000;
  for (uint64_t i = 0; i < kDraws; ++i) prompt.keys.push_back(Philox(9).Derive(i));
  options_.max_tokens = 1;
  std::map<uint32_t, int> counts;
  std::map<uint32_t, double> probabilities;
  for (const Answer& answer : Sample(64, {&prompt, 1})) {
    ++counts[answer.ids[0]];
    probabilities[answer.ids[0]] = std::exp(static_cast<double>(answer.log_probabilities[0]));
  }
  for (const auto& [id, count] : counts) {
    const double p = probabilities[id];
    EXPECT_NEAR(count, kDraws * p, 5 * std::sqrt(kDraws * p) + 3) << id;
  }
}

TEST_P(RolloutsTest, RefuseWhatHasNoAnswer) {
  Rollouts rollouts = *Rollouts::Create(network_.get(), &compute_, 2, 8);
  const auto message = [&](const std::vector<uint32_t>& ids) {
    const std::vector<Prompt> prompts = {{{1}, {Philox(1)}}, {ids, {Philox(1)}}};
    const auto answers = rollouts.Sample(weights_.data(), prompts, options_);
    EXPECT_EQ(answers.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(answers.status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("prompt 1 is empty"));
  EXPECT_THAT(message(std::vector<uint32_t>(9, 1)), HasSubstr("prompt 1 has 9 tokens"));
  EXPECT_THAT(message({1, kVocab}), HasSubstr("token id 37"));
  weights_[static_cast<size_t>(network_->tensors()[network_->output_embedding()].offset)] = NAN;
  EXPECT_THAT(message({1}), HasSubstr("not finite"));
  options_.max_tokens = 0;
  EXPECT_THAT(message({1}), HasSubstr("fewer than one token"));
  EXPECT_THAT(std::string(Rollouts::Create(network_.get(), &compute_, 2, 81).status().message()),
              HasSubstr("context 80"));
  const auto scalar = *CreateNetwork(TinySpec(GetParam().family), kVocab, Head::kScalar);
  EXPECT_THAT(std::string(Rollouts::Create(scalar.get(), &compute_, 2, 8).status().message()),
              HasSubstr("predicts no tokens"));
}

}  // namespace
}  // namespace millrace::model
