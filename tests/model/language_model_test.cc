// A model folder in use, against direct computations with the network and plain loops.
#include "model/language_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/bfloat16.h"
#include "kernels/product.h"
#include "model/families/decoder.h"
#include "model/formats/hugging_face.h"
#include "model/objectives/causal_lm.h"
#include "model/tiny_models.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kContext = 12;
constexpr char kLetters[] = "\n .abcdefghijklmnopqrstuvwxyz";

std::unique_ptr<text::Tokenizer> Characters() {
  auto tokenizer = text::TrainCharacters([](const auto& each) { return each(kLetters); });
  EXPECT_OK(tokenizer);
  return *std::move(tokenizer);
}

// 256 bytes, <|endoftext|> at 0, and one pair.
std::unique_ptr<text::Tokenizer> Bytes() {
  text::BpeTraining training;
  training.vocab_size = 258;
  auto tokenizer = text::TrainBpe(training, [](const auto& each) { return each("the the the the"); });
  EXPECT_OK(tokenizer);
  return *std::move(tokenizer);
}

class LanguageModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { Make(*Characters()); }

  void Make(const text::Tokenizer& tokenizer, uint32_t more_tokens = 0, const std::string& precision = "f32") {
    Configuration configuration;
    configuration.spec = TinySpec(GetParam(), precision);
    configuration.spec.set_context(kContext);
    configuration.vocab_size = tokenizer.vocab_size() + more_tokens;
    const std::unique_ptr<Network> network = NewNetwork(configuration.spec, configuration.vocab_size);
    weights_ = RandomWeights(network->tensors(), 1);
    ASSERT_OK(WriteModel(folder_.path(), configuration, network->tensors(), weights_.data()));
    folder_.Write("tokenizer.json", tokenizer.ToJson());
    auto model = LanguageModel::Open(folder_.path(), &compute_);
    ASSERT_OK(model);
    model_ = *std::move(model);
  }

  // log p of every token after `tokens`, at most the context: logits as products are defined, the rest in f64.
  std::vector<double> Next(absl::Span<const uint32_t> tokens) const {
    const Network& network = model_->network();
    const auto count = static_cast<int64_t>(tokens.size()), hidden = network.hidden_size();
    const auto memory = *network.NewMemory(count, count, /*for_training=*/false);
    const auto outputs = network.Forward(compute_, model_->weights(), {tokens.data(), 1, count, count}, {},
                                         &NothingToWaitFor, memory.get());
    EXPECT_OK(outputs);
    const float* const last = *outputs + (count - 1) * hidden;
    const float* const table = model_->weights().base + network.tensors()[network.output_embedding()].offset;
    std::vector<double> logits;
    double sum = 0;
    for (int64_t id = 0; id < network.vocab_size(); ++id) {
      double logit = 0;
      for (int64_t i = 0; i < hidden; ++i) {
        logit += static_cast<double>(last[i]) * static_cast<double>(table[id * hidden + i]);
      }
      logits.push_back(logit);
      sum += std::exp(logit);
    }
    for (double& logit : logits) logit -= std::log(sum);
    return logits;
  }

  std::vector<std::pair<uint32_t, float>> Generated(absl::Span<const uint32_t> prompt, const SamplingOptions& sampling,
                                                    int64_t max_tokens, uint64_t seed) {
    std::vector<std::pair<uint32_t, float>> made;
    const absl::Status status = model_->Generate(prompt, sampling, max_tokens, seed, [&](uint32_t id, float p) {
      made.emplace_back(id, p);
      return true;
    });
    EXPECT_OK(status);
    return made;
  }

  text::TemporaryFolder folder_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
  std::vector<float> weights_;
  std::unique_ptr<LanguageModel> model_;
};
INSTANTIATE_TEST_SUITE_P(Families, LanguageModelTest,
                         ::testing::Values("gpt2", "llama", "mistral", "qwen2", "lstm", "cnn"),
                         [](const auto& info) { return info.param; });

// ---- opening ----

TEST_P(LanguageModelTest, HoldsWhatTheFolderHolds) {
  EXPECT_EQ(model_->context(), kContext);
  EXPECT_EQ(model_->tokenizer().kind(), "char");
  for (const TensorSpec& tensor : model_->network().tensors().tensors()) {
    EXPECT_EQ(0, std::memcmp(model_->weights().base + tensor.offset, weights_.data() + tensor.offset,
                             static_cast<size_t>(tensor.size) * 4))
        << tensor.name;
  }
}

// As workers get them, so that a checkpoint is scored as it was evaluated.
TEST_P(LanguageModelTest, ComputesWithRoundedWeightsInBf16) {
  Make(*Characters(), 0, "bf16");
  const auto stored = LanguageModel::Open(folder_.path(), &compute_, Weights::kStored);
  ASSERT_OK(stored);
  for (const TensorSpec& tensor : model_->network().tensors().tensors()) {
    for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
      const float weight = weights_[static_cast<size_t>(i)];
      ASSERT_EQ(model_->weights().base[i], kernels::WidenBf16(kernels::RoundToBf16(weight))) << tensor.name;
      ASSERT_EQ((*stored)->weights().base[i], weight) << tensor.name;
    }
  }
}

TEST_P(LanguageModelTest, NamesWhatIsWrongWithAFolder) {
  const auto message = [&] {
    const auto model = LanguageModel::Open(folder_.path(), &compute_);
    EXPECT_FALSE(model.ok());
    return std::string(model.status().message());
  };
  folder_.Write("tokenizer.json", Bytes()->ToJson());
  EXPECT_THAT(message(), AllOf(HasSubstr(folder_.path()), HasSubstr("258 tokens"), HasSubstr("29")));
  folder_.Write("tokenizer.json", "{}");
  EXPECT_THAT(message(), HasSubstr("tokenizer.json"));
  std::filesystem::remove(folder_ / "tokenizer.json");
  EXPECT_THAT(message(), HasSubstr("tokenizer.json"));
  folder_.Write("tokenizer.json", Characters()->ToJson());
  std::filesystem::remove(folder_ / "model.safetensors");
  EXPECT_THAT(message(), HasSubstr("model.safetensors"));
  // An architecture that cannot be: 24 numbers for 7 heads, or more layers than there may be.
  std::string config = folder_.Read("config.json");
  const bool heads = IsDecoder(GetParam());
  const std::string field = !heads                 ? "\"num_hidden_layers\": 2"
                            : GetParam() == "gpt2" ? "\"n_head\": 4"
                                                   : "\"num_attention_heads\": 4";
  ASSERT_NE(config.find(field), std::string::npos);
  config.replace(config.find(field) + field.size() - 1, 1, heads ? "7" : "513");
  if (heads && GetParam() != "gpt2") config.replace(config.find("\"head_dim\": 6") + 12, 1, "3");
  folder_.Write("config.json", config);
  EXPECT_THAT(message(), AllOf(HasSubstr("config.json"), HasSubstr(heads ? "heads 7" : "a size is beyond")));
  std::filesystem::remove(folder_ / "config.json");
  EXPECT_THAT(message(), HasSubstr("config.json"));
}

TEST_P(LanguageModelTest, DocumentsStartWhereTrainingSawThemStart) {
  EXPECT_EQ(*model_->EncodeDocument("ba"), (std::vector<uint32_t>{4, 3}));
  EXPECT_FALSE(model_->EncodeDocument("B").ok());
  Make(*Bytes());
  std::vector<uint32_t> expected = {0};
  // What looks like the end of a text is characters.
  ASSERT_OK(model_->tokenizer().EncodeOrdinary("a<|endoftext|>", &expected));
  EXPECT_EQ(*model_->EncodeDocument("a<|endoftext|>"), expected);
  EXPECT_EQ(std::count(expected.begin(), expected.end(), 0u), 1);
}

// ---- scoring ----

TEST_P(LanguageModelTest, ScoresWhatTrainingEvaluates) {
  // Blocks of kContext predictions, the last one shorter; batches of blocks and blocks alone give the same bits.
  const std::vector<uint32_t> tokens = RandomIds(3, 2000, 29);
  const auto scores = model_->LogProbabilities(tokens, kContext);
  ASSERT_OK(scores);
  ASSERT_EQ(scores->size(), tokens.size() - 1);
  CausalLm objective = *CausalLm::Create(&model_->network(), &compute_, kContext, kContext, /*for_training=*/false);
  for (int64_t begin = 0; begin < 1999; begin += kContext) {
    const int64_t length = std::min<int64_t>(kContext, 1999 - begin);
    std::vector<float> expected(static_cast<size_t>(length));
    const auto loss =
        objective.Loss(weights_.data(), {tokens.data() + begin, 1, length + 1}, &NothingToWaitFor, expected.data());
    ASSERT_OK(loss);
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), scores->begin() + begin)) << begin;
  }
}

TEST_P(LanguageModelTest, ASmallerStrideGivesEachPredictionALongerPast) {
  for (const size_t count : {2, 5, 12, 13, 14, 40, 43}) {
    const std::vector<uint32_t> tokens = RandomIds(3, count, 29);
    const auto predictions = static_cast<int64_t>(count) - 1;
    for (const int64_t stride : {1, 5, 11, 12}) {
      const auto scores = model_->LogProbabilities(tokens, stride);
      ASSERT_OK(scores);
      ASSERT_EQ(static_cast<int64_t>(scores->size()), predictions);
      for (int64_t i = 0; i < predictions; ++i) {
        // The first window [begin, begin + kContext) that has prediction i.
        int64_t begin = 0;
        while (begin + kContext <= i) begin += stride;
        const auto past = static_cast<size_t>(i + 1 - begin);
        const std::vector<double> next = Next(absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(begin), past));
        ASSERT_NEAR((*scores)[static_cast<size_t>(i)], next[tokens[static_cast<size_t>(i) + 1]], 2e-5)
            << count << " tokens, stride " << stride << ", prediction " << i;
        ASSERT_GE(static_cast<int64_t>(past), std::min(i, kContext - stride) + 1);
      }
    }
  }
}

TEST_P(LanguageModelTest, ProbabilitiesOfAllNextTokensAddUpToOne) {
  std::vector<uint32_t> tokens = RandomIds(3, 9, 29);
  double sum = 0;
  for (uint32_t id = 0; id < 29; ++id) {
    tokens.back() = id;
    sum += std::exp(static_cast<double>(model_->LogProbabilities(tokens, 4)->back()));
  }
  EXPECT_NEAR(sum, 1, 1e-5);
}

TEST_P(LanguageModelTest, RefusesToScoreNonsense) {
  const std::vector<uint32_t> tokens = {1, 2, 3};
  const auto message = [&](absl::Span<const uint32_t> of, int64_t stride) {
    const auto scores = model_->LogProbabilities(of, stride);
    EXPECT_EQ(scores.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(scores.status().message());
  };
  EXPECT_THAT(message({}, 4), HasSubstr("fewer than two tokens"));
  EXPECT_THAT(message({1}, 4), HasSubstr("fewer than two tokens"));
  EXPECT_THAT(message(tokens, 0), HasSubstr("stride of 0"));
  EXPECT_THAT(message(tokens, -3), HasSubstr("stride of -3"));
  EXPECT_THAT(message(tokens, kContext + 1), HasSubstr("stride of 13"));
  EXPECT_THAT(message({1, 29}, 4), HasSubstr("29"));
}

// ---- embedding ----

TEST_P(LanguageModelTest, EmbedsAsTheMeanOfOutputs) {
  const std::vector<uint32_t> tokens = RandomIds(3, 20, 29);
  for (const size_t count : {1, 5, 12, 20}) {
    const auto embedding = model_->Embed(absl::MakeConstSpan(tokens).first(count));
    ASSERT_OK(embedding);
    // The last kContext tokens alone.
    const size_t used = std::min<size_t>(count, kContext);
    const auto length = static_cast<int64_t>(used), hidden = model_->network().hidden_size();
    const auto memory = *model_->network().NewMemory(length, length, /*for_training=*/true);
    const auto outputs =
        model_->network().Forward(compute_, weights_.data(), {tokens.data() + (count - used), 1, length, length}, {},
                                  &NothingToWaitFor, memory.get());
    ASSERT_OK(outputs);
    ASSERT_EQ(static_cast<int64_t>(embedding->size()), hidden);
    for (int64_t c = 0; c < hidden; ++c) {
      double mean = 0;
      for (int64_t t = 0; t < length; ++t)
        mean += static_cast<double>((*outputs)[t * hidden + c]) / static_cast<double>(length);
      EXPECT_NEAR((*embedding)[static_cast<size_t>(c)], mean, 1e-6) << count << " " << c;
    }
  }
  EXPECT_EQ(model_->Embed({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(model_->Embed({29}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(LanguageModelTest, FindsTheNearestByCosine) {
  const Network& network = model_->network();
  const int64_t hidden = network.hidden_size();
  const float* const table = weights_.data() + network.tensors()[network.input_embedding()].offset;
  const auto dot = [&](uint32_t a, uint32_t b) {
    double sum = 0;
    for (int64_t i = 0; i < hidden; ++i) {
      sum += static_cast<double>(table[a * hidden + i]) * static_cast<double>(table[b * hidden + i]);
    }
    return sum;
  };
  const auto neighbours = model_->Nearest(7, 1000);
  ASSERT_OK(neighbours);
  std::vector<std::pair<double, uint32_t>> expected;
  for (uint32_t id = 0; id < 29; ++id) {
    if (id != 7) expected.emplace_back(-dot(7, id) / std::sqrt(dot(7, 7) * dot(id, id)), id);
  }
  std::sort(expected.begin(), expected.end());
  ASSERT_EQ(neighbours->size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ((*neighbours)[i].id, expected[i].second) << i;
    EXPECT_NEAR((*neighbours)[i].similarity, -expected[i].first, 1e-6) << i;
  }
  EXPECT_EQ(model_->Nearest(7, 3)->size(), 3u);
  EXPECT_EQ((*model_->Nearest(7, 3))[2].id, expected[2].second);
  EXPECT_TRUE(model_->Nearest(7, 0)->empty());
  EXPECT_TRUE(model_->Nearest(7, -1)->empty());
  EXPECT_EQ(model_->Nearest(29, 3).status().code(), absl::StatusCode::kInvalidArgument);
}

// ---- generating ----

TEST_P(LanguageModelTest, GreedyTakesTheLikeliestWithItsProbability) {
  SamplingOptions greedy;
  greedy.temperature = 0;
  for (const size_t length : {1, 7, 12, 30}) {
    const std::vector<uint32_t> prompt = RandomIds(3, length, 29);
    const auto made = Generated(prompt, greedy, 40, 1);
    ASSERT_EQ(made.size(), 40u);
    // What the model sees: the prompt's last kContext tokens; whenever they are full, the newer half stays.
    std::vector<uint32_t> seen(prompt.end() - static_cast<std::ptrdiff_t>(std::min<size_t>(length, kContext)),
                               prompt.end());
    for (size_t i = 0; i < made.size(); ++i) {
      if (seen.size() > static_cast<size_t>(kContext)) seen.erase(seen.begin(), seen.end() - (kContext + 1) / 2);
      const std::vector<double> next = Next(seen);
      const auto best = static_cast<uint32_t>(std::max_element(next.begin(), next.end()) - next.begin());
      ASSERT_EQ(made[i].first, best) << length << " " << i;
      ASSERT_NEAR(made[i].second, next[best], 2e-5) << length << " " << i;
      seen.push_back(best);
    }
  }
}

TEST_P(LanguageModelTest, GeneratesByPromptOptionsAndSeedAlone) {
  const std::vector<uint32_t> prompt = RandomIds(3, 4, 29);
  SamplingOptions sampling;
  sampling.temperature = 1.5;
  const auto made = Generated(prompt, sampling, 50, 1);
  EXPECT_EQ(Generated(prompt, sampling, 50, 1), made);
  EXPECT_NE(Generated(prompt, sampling, 50, 2), made);
  // More tokens go on where fewer ended.
  EXPECT_EQ(Generated(prompt, sampling, 20, 1), decltype(made)(made.begin(), made.begin() + 20));
  // Log-probabilities are those before temperature.
  std::vector<uint32_t> seen = prompt;
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(made[i].second, Next(seen)[made[i].first], 2e-5) << i;
    seen.push_back(made[i].first);
  }
}

TEST_P(LanguageModelTest, DrawsTokensAsOftenAsTheyAreLikely) {
  const std::vector<uint32_t> prompt = RandomIds(3, 4, 29);
  const std::vector<double> next = Next(prompt);
  std::vector<int> counts(29, 0);
  constexpr int kDraws = 3000;
  for (uint64_t seed = 0; seed < kDraws; ++seed) ++counts[Generated(prompt, {}, 1, seed)[0].first];
  double chi_square = 0;
  for (size_t id = 0; id < 29; ++id) {
    const double expected = kDraws * std::exp(next[id]);
    chi_square += std::pow(counts[id] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 62);  // 28 degrees of freedom: one in 4000 is above
}

TEST_P(LanguageModelTest, EndsWhereItIsToldTo) {
  int calls = 0;
  const auto stop_at_three = [&](uint32_t, float) { return ++calls < 3; };
  EXPECT_OK(model_->Generate({1, 2}, {}, 50, 1, stop_at_three));
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(Generated({1, 2}, {}, 0, 1).empty());
  EXPECT_EQ(model_->Generate({}, {}, 5, 1, stop_at_three).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(model_->Generate({29}, {}, 5, 1, stop_at_three).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(calls, 3);
}

TEST_P(LanguageModelTest, AModelWithAScalarHeadIsNone) {
  Configuration configuration = *ReadConfig(folder_.path());
  configuration.head = Head::kScalar;
  folder_.Write("config.json", PrintConfig(configuration));
  const auto model = LanguageModel::Open(folder_.path(), &compute_);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), ::testing::HasSubstr("a model with a scalar head"));
}

TEST_P(LanguageModelTest, EndsWithTheDocument) {
  // Hot enough that all 258 tokens are about equally likely: the end comes sooner or later.
  Make(*Bytes());
  SamplingOptions hot;
  hot.temperature = 1000;
  const auto made = Generated({0, 5}, hot, 20'000, 3);
  EXPECT_LT(made.size(), 20'000u);
  EXPECT_GT(made.size(), 0u);
  for (const auto& [id, log_probability] : made) EXPECT_NE(id, 0u);
}

}  // namespace
}  // namespace millrace::model
