// What objectives are made of: log-probabilities, entropies and values of tokens against plain f64 formulas, and the
// gradients of any function of them against differences.
#include "model/objectives/token_scores.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "model/objectives/causal_lm.h"
#include "model/objectives/token_values.h"
#include "model/tiny_models.h"
#include "testing/gradient_check.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using testing::Floats;
using ::testing::HasSubstr;
using testing::Numbers;

constexpr uint32_t kVocab = 37;
constexpr int64_t kRows = 2, kColumns = 9;

// Moves each tensor along its gradient: what the gradients are of must rise by their length.
void ExpectGradients(const TensorList& tensors, const Floats& weights, const Floats& gradients,
                     const std::function<double(const Floats& weights)>& loss) {
  for (const TensorSpec& tensor : tensors.tensors()) {
    double squares = 0;
    for (int64_t i = 0; i < tensor.size; ++i) {
      squares += std::pow(static_cast<double>(gradients[static_cast<size_t>(tensor.offset + i)]), 2);
    }
    const double length = std::sqrt(squares), step = 2e-3;
    ASSERT_GT(length, 0) << tensor.name;
    double losses[2];
    for (const int side : {0, 1}) {
      Floats moved = weights;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        moved[at] += static_cast<float>((side == 0 ? -step : step) * static_cast<double>(gradients[at]) / length);
      }
      losses[side] = loss(moved);
    }
    EXPECT_NEAR((losses[1] - losses[0]) / (2 * step), length, 0.01 * length + 0.005) << tensor.name;
  }
}

class OverTokens : public ::testing::TestWithParam<const char*> {
 protected:
  void Make(Head head) {
    network_ = *CreateNetwork(TinySpec(GetParam()), kVocab, head);
    weights_ = RandomWeights(network_->tensors(), 1);
  }

  std::unique_ptr<Network> network_;
  Floats weights_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
  const std::vector<uint32_t> ids_ = RandomIds(2, kRows* kColumns, kVocab);
  // The second row holds two sequences.
  const std::vector<uint32_t> starts_ = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4};
};
INSTANTIATE_TEST_SUITE_P(Families, OverTokens, ::testing::Values("gpt2", "llama", "mistral", "qwen2", "lstm", "cnn"),
                         [](const auto& info) { return std::string(info.param); });

// ---- scores ----

TEST_P(OverTokens, ScoresAreLogProbabilitiesAndEntropiesAtTheTemperature) {
  Make(Head::kLanguage);
  const int64_t hidden = network_->hidden_size(), inputs = kRows * (kColumns - 1);
  const std::vector<uint8_t> scored = {0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1};
  const Batch batch = {ids_.data(), kRows, kColumns, 0, starts_.data(), scored.data()};
  const auto memory = *network_->NewMemory(inputs, kColumns - 1, /*for_training=*/false);
  const auto outputs =
      network_->Forward(compute_, weights_.data(), {ids_.data(), kRows, kColumns - 1, kColumns, starts_.data()}, {},
                        &NothingToWaitFor, memory.get());
  ASSERT_OK(outputs);
  const float* const embedding = weights_.data() + network_->tensors()[network_->output_embedding()].offset;
  TokenScores scores = *TokenScores::Create(network_.get(), &compute_, inputs, kColumns - 1, /*for_training=*/false);
  ASSERT_OK(scores.Forward(weights_.data(), batch, {}, &NothingToWaitFor));
  ASSERT_EQ(scores.predictions(), 9);
  for (const float temperature : {1.0f, 0.6f, 2.0f}) {
    Floats log_probabilities(9), entropies(9);
    scores.Score(temperature, absl::MakeSpan(log_probabilities), absl::MakeSpan(entropies));
    size_t next = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t column = 0; column < kColumns; ++column) {
        if (scored[static_cast<size_t>(row * kColumns + column)] == 0) continue;
        const float* const output = *outputs + (row * (kColumns - 1) + column - 1) * hidden;
        std::vector<double> p(kVocab);
        double sum = 0, entropy = 0;
        for (uint32_t token = 0; token < kVocab; ++token) {
          double logit = 0;
          for (int64_t c = 0; c < hidden; ++c) {
            logit += static_cast<double>(output[c]) * static_cast<double>(embedding[token * hidden + c]);
          }
          sum += p[token] = std::exp(logit / static_cast<double>(temperature));
        }
        for (double& one : p) {
          one /= sum;
          entropy -= one * std::log(one);
        }
        EXPECT_NEAR(log_probabilities[next], std::log(p[ids_[static_cast<size_t>(row * kColumns + column)]]), 1e-5);
        EXPECT_NEAR(entropies[next], entropy, 1e-5);
        ++next;
      }
    }
    // Entropies that nobody asks for change no log-probability, nor does a second look.
    Floats alone(9);
    scores.Score(temperature, absl::MakeSpan(alone), {});
    EXPECT_EQ(alone, log_probabilities);
  }
}

TEST_P(OverTokens, GradientsAreThoseOfAnyFunctionOfScores) {
  Make(Head::kLanguage);
  const Batch batch = {ids_.data(), kRows, kColumns, 0, starts_.data()};
  TokenScores scores = *TokenScores::Create(network_.get(), &compute_, kRows * (kColumns - 1), kColumns - 1,
                                            /*for_training=*/true);
  const auto count = static_cast<size_t>(batch.predictions());
  const Floats of_log_probabilities = Numbers(5, count), of_entropies = Numbers(6, count);
  const float temperature = 0.8f;
  const auto loss = [&](const Floats& weights) {
    EXPECT_OK(scores.Forward(weights.data(), batch, {}, &NothingToWaitFor));
    Floats log_probabilities(count), entropies(count);
    scores.Score(temperature, absl::MakeSpan(log_probabilities), absl::MakeSpan(entropies));
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += static_cast<double>(of_log_probabilities[i]) * static_cast<double>(log_probabilities[i]) +
             static_cast<double>(of_entropies[i]) * static_cast<double>(entropies[i]);
    }
    return sum;
  };
  loss(weights_);
  Floats gradients(weights_.size(), 0.0f), log_probabilities(count), again(count);
  ASSERT_OK(scores.Backward({of_log_probabilities, of_entropies, temperature}, nullptr, gradients.data(),
                            &NothingToWaitFor, absl::MakeSpan(log_probabilities)));
  scores.Score(temperature, absl::MakeSpan(again), {});
  EXPECT_EQ(log_probabilities, again);
  ExpectGradients(network_->tensors(), weights_, gradients, loss);
}

TEST_P(OverTokens, AScaledSumOfScoresIsTheCausalLoss) {
  Make(Head::kLanguage);
  const Batch batch = {ids_.data(), kRows, kColumns, 0, starts_.data()};
  CausalLm causal_lm =
      *CausalLm::Create(network_.get(), &compute_, kRows * (kColumns - 1), kColumns - 1, /*for_training=*/true);
  Floats expected(weights_.size(), 0.0f), gradients(weights_.size(), 0.0f);
  ASSERT_OK(
      causal_lm.Gradients(weights_.data(), batch, {}, 0.25f, &NothingToWaitFor, expected.data(), &NothingToWaitFor));
  TokenScores scores = *TokenScores::Create(network_.get(), &compute_, kRows * (kColumns - 1), kColumns - 1,
                                            /*for_training=*/true);
  ASSERT_OK(scores.Forward(weights_.data(), batch, {}, &NothingToWaitFor));
  const Floats derivatives(static_cast<size_t>(batch.predictions()), -0.25f);
  ASSERT_OK(scores.Backward({derivatives, {}, 1}, nullptr, gradients.data(), &NothingToWaitFor));
  EXPECT_EQ(gradients, expected);
}

// ---- a scalar head ----

TEST_P(OverTokens, ValuesAreOutputsTimesTheScoreVector) {
  Make(Head::kScalar);
  const std::unique_ptr<Network> language = NewNetwork(TinySpec(GetParam()), kVocab);
  // Everything below the heads is laid out alike.
  Floats language_weights(static_cast<size_t>(language->tensors().floats()), 0.0f);
  for (const TensorSpec& tensor : network_->tensors().tensors()) {
    const int index = language->tensors().Find(tensor.name);
    if (tensor.name == "score.weight") {
      EXPECT_EQ(index, -1);
      EXPECT_EQ(tensor.shape, (std::vector<int64_t>{1, network_->hidden_size()}));
      EXPECT_EQ(tensor.group, network_->last_group());
      EXPECT_FLOAT_EQ(tensor.start_size, 0.2f);  // 1 / sqrt(24 + 1)
      continue;
    }
    ASSERT_GE(index, 0) << tensor.name;
    std::copy_n(weights_.data() + tensor.offset, tensor.size,
                language_weights.data() + language->tensors()[index].offset);
  }
  EXPECT_EQ(network_->output_embedding(), -1);
  EXPECT_EQ(network_->tensors()[network_->score()].name, "score.weight");
  EXPECT_EQ(network_->tensors().Find("lm_head.weight"), -1);
  const TokenMatrix tokens = {ids_.data(), kRows, kColumns, kColumns, starts_.data()};
  const auto memory = *language->NewMemory(tokens.tokens(), kColumns, /*for_training=*/false);
  const auto outputs =
      language->Forward(compute_, language_weights.data(), tokens, {}, &NothingToWaitFor, memory.get());
  ASSERT_OK(outputs);
  TokenValues made = *TokenValues::Create(network_.get(), &compute_, tokens.tokens(), kColumns, false);
  Floats values(static_cast<size_t>(tokens.tokens()));
  ASSERT_OK(made.Forward(weights_.data(), tokens, {}, &NothingToWaitFor, absl::MakeSpan(values)));
  const float* const score = weights_.data() + network_->tensors()[network_->score()].offset;
  for (size_t i = 0; i < values.size(); ++i) {
    double value = 0;
    for (int64_t c = 0; c < network_->hidden_size(); ++c) {
      value += static_cast<double>((*outputs)[static_cast<int64_t>(i) * network_->hidden_size() + c]) *
               static_cast<double>(score[c]);
    }
    EXPECT_NEAR(values[i], value, 1e-5) << i;
  }
}

TEST_P(OverTokens, GradientsAreThoseOfAnyFunctionOfValues) {
  Make(Head::kScalar);
  const TokenMatrix tokens = {ids_.data(), kRows, kColumns, kColumns, starts_.data()};
  TokenValues made = *TokenValues::Create(network_.get(), &compute_, tokens.tokens(), kColumns, true);
  const Floats derivatives = Numbers(5, static_cast<size_t>(tokens.tokens()));
  const auto loss = [&](const Floats& weights) {
    Floats values(derivatives.size());
    EXPECT_OK(made.Forward(weights.data(), tokens, {}, &NothingToWaitFor, absl::MakeSpan(values)));
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      sum += static_cast<double>(derivatives[i]) * static_cast<double>(values[i]);
    }
    return sum;
  };
  loss(weights_);
  Floats gradients(weights_.size(), 0.0f);
  ASSERT_OK(made.Backward(derivatives, nullptr, gradients.data(), &NothingToWaitFor));
  ExpectGradients(network_->tensors(), weights_, gradients, loss);
  // The head alone: the same bits, and nothing else is touched.
  std::vector<bool> trainable(static_cast<size_t>(network_->tensors().size()), false);
  trainable[static_cast<size_t>(network_->score())] = true;
  Floats of_head(weights_.size(), 0.0f), expected = of_head;
  ASSERT_OK(made.Backward(derivatives, &trainable, of_head.data(), &NothingToWaitFor));
  const int64_t offset = network_->tensors()[network_->score()].offset;
  std::copy_n(gradients.data() + offset, network_->hidden_size(), expected.data() + offset);
  EXPECT_EQ(of_head, expected);
}

TEST_P(OverTokens, HeadsDoWhatTheyAreFor) {
  Make(Head::kScalar);
  EXPECT_THAT(std::string(TokenScores::Create(network_.get(), &compute_, 8, 8, false).status().message()),
              HasSubstr("predicts no tokens"));
  TokenValues values = *TokenValues::Create(network_.get(), &compute_, 8, 8, false);
  const uint32_t beyond = kVocab;
  float value = 0;
  EXPECT_THAT(
      std::string(values.Forward(weights_.data(), {&beyond, 1, 1, 1}, {}, &NothingToWaitFor, absl::MakeSpan(&value, 1))
                      .message()),
      HasSubstr("token id 37"));
  Make(Head::kLanguage);
  EXPECT_THAT(std::string(TokenValues::Create(network_.get(), &compute_, 8, 8, false).status().message()),
              HasSubstr("has no values"));
}

}  // namespace
}  // namespace millrace::model
