// What a network and its objective guarantee: the same bits everywhere, groups in order, nothing that depends on how
// the work is cut. What they compute is judged by layers_test and golden_test.
#include "model/families/network.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/product.h"
#include "kernels/rows.h"
#include "model/objectives/causal_lm.h"
#include "model/tensor_list.h"
#include "model/tiny_models.h"
#include "testing/isas.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kVocab = 37;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Course {
  double loss = 0;
  std::vector<float> gradients;
  std::vector<uint32_t> needed, final;
};

Course Train(const Network& network, const kernels::Compute& compute, const std::vector<float>& weights,
             const Batch& batch, const Philox* key, CausalLm* objective = nullptr) {
  CausalLm own =
      *CausalLm::Create(&network, &compute, batch.rows * (batch.columns - 1), batch.columns - 1, /*for_training=*/true);
  Course course;
  course.gradients.resize(weights.size(), 0.0f);
  const auto loss = (objective == nullptr ? own : *objective)
                        .Gradients(
                            weights.data(), batch, {key}, 0.01f,
                            [&](uint32_t group) {
                              course.needed.push_back(group);
                              return absl::OkStatus();
                            },
                            course.gradients.data(),
                            [&](uint32_t group) {
                              course.final.push_back(group);
                              return absl::OkStatus();
                            });
  EXPECT_OK(loss);
  course.loss = *loss;
  return course;
}

struct Case {
  std::string family, precision;
};
std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  return info.param.family + "_" + info.param.precision;
}

class NetworkTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<Network> New(double dropout = 0, uint32_t vocab = kVocab) const {
    v1::ModelSpec spec = TinySpec(GetParam().family, GetParam().precision);
    spec.set_dropout(dropout);
    return NewNetwork(spec, vocab);
  }
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};
INSTANTIATE_TEST_SUITE_P(Families, NetworkTest,
                         ::testing::Values(Case{"gpt2", "f32"}, Case{"gpt2", "bf16"}, Case{"llama", "f32"},
                                           Case{"llama", "bf16"}, Case{"mistral", "f32"}, Case{"mistral", "bf16"},
                                           Case{"qwen2", "f32"}, Case{"lstm", "f32"}, Case{"lstm", "bf16"},
                                           Case{"cnn", "f32"}, Case{"cnn", "bf16"}),
                         &CaseName);

// ---- bits ----

TEST_P(NetworkTest, BitsDependOnNeitherThreadsNorInstructionSet) {
  constexpr int64_t kRows = 3, kColumns = 71;  // more than one block of attention
  const std::unique_ptr<Network> network = New(/*dropout=*/0.1);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, kRows * kColumns, kVocab);
  const Philox key(3);
  const Batch batch = {ids.data(), kRows, kColumns};
  const kernels::Compute scalar(kernels::Isa::kScalar, 1);
  const Course expected = Train(*network, scalar, weights, batch, &key);
  for (const kernels::Isa isa : testing::IsasHere()) {
    for (const int threads : {1, 3}) {
      const kernels::Compute compute(isa, threads);
      const Course course = Train(*network, compute, weights, batch, &key);
      EXPECT_EQ(course.loss, expected.loss) << kernels::IsaName(isa) << " " << threads;
      EXPECT_TRUE(SameBits(course.gradients, expected.gradients)) << kernels::IsaName(isa) << " " << threads;
    }
  }
  // The comparison is of something: dropout and its key count.
  const Philox other_key(4);
  EXPECT_NE(Train(*network, scalar, weights, batch, &other_key).loss, expected.loss);
  EXPECT_NE(Train(*network, scalar, weights, batch, nullptr).loss, expected.loss);
}

TEST_P(NetworkTest, TokenByTokenAndInChunksAreTheBitsOfTheWhole) {
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const int64_t context = 80, hidden = network->hidden_size();
  const std::vector<uint32_t> ids = RandomIds(2, static_cast<size_t>(context), kVocab);
  const auto memory = *network->NewMemory(context, context, /*for_training=*/false);
  const auto whole = network->Forward(compute_, weights.data(), {ids.data(), 1, context, context}, {},
                                      &NothingToWaitFor, memory.get());
  ASSERT_OK(whole);
  const std::vector<float> expected(*whole, *whole + context * hidden);
  const auto cache = *network->NewCache();
  const std::vector<std::vector<int64_t>> ways = {
      std::vector<int64_t>(static_cast<size_t>(context), 1), {context}, {7, 1, 63, 2, 7}, {64, 16}, {1, 65, 14}};
  for (const std::vector<int64_t>& chunks : ways) {
    ASSERT_OK(network->Begin(compute_, weights.data(), cache.get()));  // the cache still holds the last way's tokens
    int64_t past = 0;
    for (const int64_t count : chunks) {
      const float* const outputs = network->Extend(
          compute_, weights.data(), absl::MakeConstSpan(ids.data() + past, static_cast<size_t>(count)), cache.get());
      ASSERT_EQ(0, std::memcmp(outputs, expected.data() + past * hidden, static_cast<size_t>(count * hidden) * 4))
          << chunks.size() << " chunks, at " << past;
      past += count;
    }
    ASSERT_EQ(past, context);
  }
}

TEST_P(NetworkTest, MemoryForTrainingAndNotGivesTheSameOutputs) {
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, 3 * 70, kVocab);
  std::vector<std::vector<float>> outputs;
  for (const bool for_training : {false, true}) {
    // Larger than needed, and used for another batch before.
    const auto memory = *network->NewMemory(300, 75, for_training);
    for (const int64_t rows : {2, 3}) {
      const auto made = network->Forward(compute_, weights.data(), {ids.data() + (3 - rows) * 70, rows, 70, 70}, {},
                                         &NothingToWaitFor, memory.get());
      ASSERT_OK(made);
      if (rows == 3) outputs.emplace_back(*made, *made + 3 * 70 * network->hidden_size());
    }
  }
  EXPECT_TRUE(SameBits(outputs[0], outputs[1]));
}

TEST(CausalLmTest, ThePieceOfLogitsChangesNoBit) {
  // With so large a vocabulary 64 rows of logits are made at a time: 150 predictions take three pieces. Here all are
  // made at once, as products are defined.
  constexpr uint32_t kLargeVocab = 20'000;
  constexpr int64_t kRows = 3, kColumns = 51, kTokens = kRows * (kColumns - 1);
  for (const char* precision : {"f32", "bf16"}) {
    const v1::ModelSpec spec = TinySpec("llama", precision);  // untied
    const std::unique_ptr<Network> network = NewNetwork(spec, kLargeVocab);
    const std::vector<float> weights = RandomWeights(network->tensors(), 1);
    const std::vector<uint32_t> ids = RandomIds(2, kRows * kColumns, kLargeVocab);
    const kernels::Compute compute(kernels::DetectIsa(), 2);
    const Course course = Train(*network, compute, weights, {ids.data(), kRows, kColumns}, nullptr);
    const auto memory = *network->NewMemory(kTokens, kColumns - 1, /*for_training=*/false);
    const auto outputs = network->Forward(compute, weights.data(), {ids.data(), kRows, kColumns - 1, kColumns}, {},
                                          &NothingToWaitFor, memory.get());
    ASSERT_OK(outputs);
    const TensorSpec& embedding = network->tensors()[network->output_embedding()];
    std::vector<float> logits(kTokens * kLargeVocab), losses(kTokens), expected(static_cast<size_t>(embedding.size));
    std::vector<uint32_t> targets;
    for (int64_t i = 0; i < kTokens; ++i) {
      targets.push_back(ids[static_cast<size_t>(i / (kColumns - 1) * kColumns + i % (kColumns - 1) + 1)]);
    }
    const kernels::FlushDenormals flush;
    kernels::Product product = {.m = kTokens, .n = kLargeVocab, .k = network->hidden_size()};
    product.a = {*outputs, network->hidden_size(), 1};
    product.b = kernels::Operand{weights.data() + embedding.offset, network->hidden_size(), 1}.Transposed();
    product.c = logits.data();
    product.c_stride = kLargeVocab;
    product.precision = network->precision();
    kernels::MultiplyAsDefined(product);
    const std::vector<float> d_loss(kTokens, 0.01f);
    kernels::CrossEntropyRows(compute, logits.data(), kTokens, kLargeVocab,
                              {.targets = targets.data(), .loss = losses.data(), .d_loss = d_loss.data()});
    kernels::Product gradient = {.m = kLargeVocab, .n = network->hidden_size(), .k = kTokens};
    gradient.a = kernels::Operand{logits.data(), kLargeVocab, 1}.Transposed();
    gradient.b = {*outputs, network->hidden_size(), 1};
    gradient.c = expected.data();
    gradient.c_stride = network->hidden_size();
    gradient.precision = network->precision();
    kernels::MultiplyAsDefined(gradient);
    EXPECT_EQ(0, std::memcmp(course.gradients.data() + embedding.offset, expected.data(),
                             static_cast<size_t>(embedding.size) * sizeof(float)))
        << precision;
    double loss = 0;
    for (const float of_one : losses) loss += static_cast<double>(of_one);
    EXPECT_EQ(course.loss, loss) << precision;
  }
}

// ---- batches ----

TEST_P(NetworkTest, AMicrobatchIsTheSumOfItsRows) {
  constexpr int64_t kRows = 4, kColumns = 20;
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, kRows * kColumns, kVocab);
  const Course together = Train(*network, compute_, weights, {ids.data(), kRows, kColumns}, nullptr);
  double loss = 0;
  std::vector<double> gradients(weights.size(), 0);
  for (int64_t row = 0; row < kRows; ++row) {
    const Course one = Train(*network, compute_, weights, {ids.data() + row * kColumns, 1, kColumns}, nullptr);
    loss += one.loss;
    for (size_t i = 0; i < gradients.size(); ++i) gradients[i] += static_cast<double>(one.gradients[i]);
  }
  // Each prediction's loss is the same bits, alone or not.
  EXPECT_NEAR(together.loss, loss, 1e-9);
  for (const TensorSpec& tensor : network->tensors().tensors()) {
    double largest = 0;
    for (int64_t i = 0; i < tensor.size; ++i) {
      largest = std::max(largest, std::fabs(gradients[static_cast<size_t>(tensor.offset + i)]));
    }
    ASSERT_GT(largest, 0) << tensor.name;
    for (int64_t i = 0; i < tensor.size; ++i) {
      const auto at = static_cast<size_t>(tensor.offset + i);
      ASSERT_NEAR(together.gradients[at], gradients[at], 1e-5 * largest) << tensor.name << " " << i;
    }
  }
}

TEST_P(NetworkTest, AnObjectiveServesSmallerBatchesThanItIsMadeFor) {
  const std::unique_ptr<Network> network = New(/*dropout=*/0.1);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, 200, kVocab);
  const Philox key(3);
  CausalLm large = *CausalLm::Create(network.get(), &compute_, 160, 80, /*for_training=*/true);
  // The first one leaves its numbers behind.
  Train(*network, compute_, weights, {ids.data(), 2, 81}, &key, &large);
  for (const Batch& batch : {Batch{ids.data(), 1, 2}, Batch{ids.data(), 15, 6}, Batch{ids.data(), 2, 71}}) {
    const Course own = Train(*network, compute_, weights, batch, &key);
    const Course shared = Train(*network, compute_, weights, batch, &key, &large);
    EXPECT_EQ(own.loss, shared.loss) << batch.columns;
    EXPECT_TRUE(SameBits(own.gradients, shared.gradients)) << batch.columns;
  }
}

TEST(CausalLmTest, RefusesWhatDoesNotFit) {
  const std::unique_ptr<Network> network = NewNetwork(TinySpec("gpt2"), kVocab);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  CausalLm objective = *CausalLm::Create(network.get(), &compute, 20, 10, /*for_training=*/false);
  std::vector<uint32_t> ids(1000, 1);
  const auto message = [&](const Batch& batch) {
    const auto loss = objective.Loss(weights.data(), batch, &NothingToWaitFor);
    EXPECT_EQ(loss.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(loss.status().message());
  };
  EXPECT_THAT(message({ids.data(), 0, 5}), HasSubstr("0 x 5"));
  EXPECT_THAT(message({ids.data(), 2, 1}), HasSubstr("predicts nothing"));
  EXPECT_THAT(message({ids.data(), 2, 5, 4}), HasSubstr("scored from 4"));
  EXPECT_THAT(message({ids.data(), 2, 5, -1}), HasSubstr("scored from -1"));
  EXPECT_THAT(message({ids.data(), 3, 11}), HasSubstr("memory for 20 tokens"));
  EXPECT_THAT(message({ids.data(), 1, 12}), HasSubstr("1 sequences of 11"));
  ids[7] = kVocab;
  EXPECT_THAT(message({ids.data(), 2, 5}), HasSubstr("token id 37 is not below the vocabulary's 37"));
  // Beyond the context, whatever memory there is.
  CausalLm large = *CausalLm::Create(network.get(), &compute, 100, 100, /*for_training=*/false);
  ids[7] = 1;
  EXPECT_OK(large.Loss(weights.data(), {ids.data(), 1, 81}, &NothingToWaitFor));
  EXPECT_THAT(large.Loss(weights.data(), {ids.data(), 1, 82}, &NothingToWaitFor).status().message(),
              HasSubstr("context 80"));
}

// ---- groups ----

TEST_P(NetworkTest, GroupsAreNeededInOrderAndFinalInReverse) {
  constexpr int64_t kRows = 2, kColumns = 9;
  const std::unique_ptr<Network> network = New(/*dropout=*/0.1);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, kRows * kColumns, kVocab);
  const Philox key(3);
  const Batch batch = {ids.data(), kRows, kColumns};
  const Course course = Train(*network, compute_, weights, batch, &key);
  ASSERT_EQ(network->groups(), 4u);
  EXPECT_THAT(course.needed, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(course.final, ElementsAre(3, 2, 1, 0));

  // Weights that arrive when they are asked for are in time; gradients that leave when they are final are whole.
  std::vector<float> arriving(weights.size(), NAN), gradients(weights.size(), 0.0f), leaving(weights.size(), 0.0f);
  const auto copy_group = [&](uint32_t group, const std::vector<float>& from, std::vector<float>* to) {
    for (const TensorSpec& tensor : network->tensors().tensors()) {
      if (tensor.group != group) continue;
      std::copy_n(from.data() + tensor.offset, tensor.size, to->data() + tensor.offset);
    }
    return absl::OkStatus();
  };
  CausalLm objective =
      *CausalLm::Create(network.get(), &compute_, kRows * (kColumns - 1), kColumns - 1, /*for_training=*/true);
  const auto loss = objective.Gradients(
      arriving.data(), batch, {&key}, 0.01f, [&](uint32_t group) { return copy_group(group, weights, &arriving); },
      gradients.data(), [&](uint32_t group) { return copy_group(group, gradients, &leaving); });
  ASSERT_OK(loss);
  EXPECT_EQ(*loss, course.loss);
  EXPECT_TRUE(SameBits(gradients, course.gradients));
  EXPECT_TRUE(SameBits(leaving, course.gradients));
  // Every group has tensors, and every tensor a gradient.
  for (const TensorSpec& tensor : network->tensors().tensors()) {
    EXPECT_LE(tensor.group, 3u) << tensor.name;
    bool any = false;
    for (int64_t i = 0; i < tensor.size; ++i) any |= gradients[static_cast<size_t>(tensor.offset + i)] != 0;
    EXPECT_TRUE(any) << tensor.name;
  }
}

TEST_P(NetworkTest, AnErrorOfAHookEndsThePass) {
  const std::unique_ptr<Network> network = New();
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, 10, kVocab);
  CausalLm objective = *CausalLm::Create(network.get(), &compute_, 8, 4, /*for_training=*/true);
  std::vector<float> gradients(weights.size());
  for (uint32_t bad = 0; bad < 4; ++bad) {
    uint32_t needed = 0, final = 0;
    const auto failing = [&](uint32_t* calls, bool fails) {
      return [calls, fails, bad](uint32_t group) {
        ++*calls;
        return fails && group == bad ? absl::DataLossError("lost") : absl::OkStatus();
      };
    };
    const auto first = objective.Gradients(weights.data(), {ids.data(), 2, 5}, {}, 1, failing(&needed, true),
                                           gradients.data(), failing(&final, false));
    EXPECT_EQ(first.status(), absl::DataLossError("lost"));
    EXPECT_EQ(needed, bad + 1);
    EXPECT_EQ(final, 0u);
    needed = 0;
    const auto second = objective.Gradients(weights.data(), {ids.data(), 2, 5}, {}, 1, failing(&needed, false),
                                            gradients.data(), failing(&final, true));
    EXPECT_EQ(second.status(), absl::DataLossError("lost"));
    EXPECT_EQ(needed, 4u);
    EXPECT_EQ(final, 4 - bad);
  }
}

// ---- dropout in the whole ----

TEST_P(NetworkTest, GradientsWithDropoutAreThoseOfWhatWasKept) {
  if (GetParam().precision == "bf16") return;  // rounded operands make steps where differences are taken
  constexpr int64_t kRows = 2, kColumns = 9;
  const std::unique_ptr<Network> network = New(/*dropout=*/0.3);
  const std::vector<float> weights = RandomWeights(network->tensors(), 1);
  const std::vector<uint32_t> ids = RandomIds(2, kRows * kColumns, kVocab);
  const Philox key(3);
  const Batch batch = {ids.data(), kRows, kColumns};
  const Course course = Train(*network, compute_, weights, batch, &key);
  for (const TensorSpec& tensor : network->tensors().tensors()) {
    // Along the gradient the loss rises by the gradient's length.
    double squares = 0;
    for (int64_t i = 0; i < tensor.size; ++i) {
      squares += std::pow(static_cast<double>(course.gradients[static_cast<size_t>(tensor.offset + i)]) / 0.01, 2);
    }
    const double length = std::sqrt(squares), step = 2e-3;
    ASSERT_GT(length, 0) << tensor.name;
    double losses[2];
    for (const int side : {0, 1}) {
      std::vector<float> moved = weights;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        moved[at] +=
            static_cast<float>((side == 0 ? -step : step) * static_cast<double>(course.gradients[at]) / 0.01 / length);
      }
      losses[side] = Train(*network, compute_, moved, batch, &key).loss;
    }
    EXPECT_NEAR((losses[1] - losses[0]) / (2 * step), length, 0.01 * length + 0.02) << tensor.name;
  }
}

TEST_P(NetworkTest, EveryPlaceDropsOnItsOwn) {
  // With all weights of the layers zero but biases, what differs between layers and places is dropout alone.
  if (GetParam().family != "gpt2" || GetParam().precision != "f32") return;
  v1::ModelSpec spec = TinySpec("gpt2");
  spec.set_dropout(0.5);
  const std::unique_ptr<Network> network = NewNetwork(spec, kVocab);
  std::vector<float> weights(static_cast<size_t>(network->tensors().floats()), 0.0f);
  const auto fill = [&](const std::string& name, float value) {
    const TensorSpec& tensor = network->tensors()[network->tensors().Find(name)];
    std::fill_n(weights.data() + tensor.offset, tensor.size, value);
  };
  // Embeddings add 1 or 0 to a number, each branch of each layer 2, 4, 8, 16, all times 2 where they are kept.
  fill("transformer.wte.weight", 0.5f);
  fill("transformer.h.0.attn.c_proj.bias", 1.0f);
  fill("transformer.h.0.mlp.c_proj.bias", 2.0f);
  fill("transformer.h.1.attn.c_proj.bias", 4.0f);
  fill("transformer.h.1.mlp.c_proj.bias", 8.0f);
  fill("transformer.ln_f.weight", 1.0f);
  const int64_t tokens = 80, hidden = network->hidden_size();
  const std::vector<uint32_t> ids(static_cast<size_t>(tokens), 3);
  const auto memory = *network->NewMemory(tokens, tokens, /*for_training=*/true);
  const Philox key(3);
  const auto outputs = network->Forward(compute_, weights.data(), {ids.data(), 1, tokens, tokens}, {&key},
                                        &NothingToWaitFor, memory.get());
  ASSERT_OK(outputs);
  // The last norm keeps the order of a token's numbers: with independent places all of the 2^5 sums occur about
  // equally often, so that some token has nearly as many different outputs as numbers.
  size_t different = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    different += std::set<float>(*outputs + token * hidden, *outputs + (token + 1) * hidden).size();
  }
  // 24 draws of 32 have 32 (1 - (31/32)^24) = 17.1 different ones on average; were two places to drop alike, 24 draws
  // of 16 would have 12.6.
  EXPECT_NEAR(static_cast<double>(different) / static_cast<double>(tokens), 17.1, 1);
}

// ---- what does not go ----

TEST(CreateNetworkTest, SaysWhatThereIs) {
  EXPECT_THAT(CreateNetwork(TinySpec("rwkv"), kVocab).status().message(),
              HasSubstr("there is no family 'rwkv'; gpt2, llama, mistral, qwen2, bert, lstm and cnn are known"));
  v1::ModelSpec wide = TinySpec("cnn");
  wide.set_kernel_size(65);
  EXPECT_THAT(CreateNetwork(wide, kVocab).status().message(), HasSubstr("kernel_size must be between 1 and 64"));
  const std::unique_ptr<Network> lstm = NewNetwork(TinySpec("lstm"), kVocab);
  v1::AdapterSpec adapter;
  adapter.set_type("prompt_tuning");
  EXPECT_THAT(Adapter::Create(adapter, lstm->spec(), lstm->linear_sites()).status().message(),
              HasSubstr("adapters are for transformers; a model of the family lstm takes none"));
}

TEST(CausalStackTest, AConvolutionSeesAsFarAsItsLayersReach) {
  // Two layers of kernel size 3 see 5 tokens, and an LSTM sees all.
  for (const char* family : {"cnn", "lstm"}) {
    const std::unique_ptr<Network> network = NewNetwork(TinySpec(family), kVocab);
    const std::vector<float> weights = RandomWeights(network->tensors(), 1);
    const kernels::Compute compute(kernels::DetectIsa(), 1);
    std::vector<uint32_t> ids = RandomIds(2, 9, kVocab);
    const auto last = [&] {
      const auto memory = *network->NewMemory(9, 9, /*for_training=*/false);
      const float* const outputs =
          *network->Forward(compute, weights.data(), {ids.data(), 1, 9, 9}, {}, &NothingToWaitFor, memory.get());
      return std::vector<float>(outputs + 8 * network->hidden_size(), outputs + 9 * network->hidden_size());
    };
    const std::vector<float> before = last();
    ids[3] = (ids[3] + 1) % kVocab;
    EXPECT_EQ(SameBits(last(), before), std::string(family) == "cnn");
    ids[4] = (ids[4] + 1) % kVocab;
    EXPECT_FALSE(SameBits(last(), before)) << family;
  }
}

// ---- tensors ----

TEST(DecoderTensors, AreHuggingFaces) {
  for (const char* family : {"gpt2", "llama"}) {
    const std::string folder = absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/model/", family);
    const auto file = SafetensorsFile::Open(folder + "/model.safetensors");
    ASSERT_OK(file);
    v1::ModelSpec spec = TinySpec(family);
    spec.set_hidden_size(16);
    spec.set_intermediate_size(spec.family() == "gpt2" ? 64 : 24);
    spec.set_context(12);
    const std::unique_ptr<Network> network = NewNetwork(spec, 29);
    std::map<std::string, std::vector<int64_t>> expected, own;
    for (const SafetensorsEntry& entry : (*file)->header().tensors) expected[entry.name] = entry.shape;
    int64_t parameters = 0, last_end = 0;
    uint32_t last_group = 0;
    for (const TensorSpec& tensor : network->tensors().tensors()) {
      own[tensor.name] = tensor.shape;
      // Laid out in the order of the forward pass, aligned, without overlap.
      EXPECT_EQ(tensor.offset % 16, 0) << tensor.name;
      EXPECT_GE(tensor.offset, last_end) << tensor.name;
      EXPECT_GE(tensor.group, last_group) << tensor.name;
      last_end = tensor.offset + tensor.size;
      last_group = tensor.group;
      parameters += tensor.size;
      EXPECT_EQ(network->tensors().Find(tensor.name), &tensor - network->tensors().tensors().data());
    }
    EXPECT_EQ(own, expected);
    EXPECT_EQ(network->tensors().parameters(), parameters);
    EXPECT_GE(network->tensors().floats(), last_end);
    EXPECT_EQ(network->tensors().Find("nothing"), -1);
  }
}

TEST(DecoderTensors, SayWhatTheyAre) {
  const std::unique_ptr<Network> gpt2 = NewNetwork(TinySpec("gpt2"), kVocab);
  const std::unique_ptr<Network> llama = NewNetwork(TinySpec("llama"), kVocab);
  const auto get = [](const Network& network, const std::string& name) {
    return network.tensors()[network.tensors().Find(name)];
  };
  EXPECT_EQ(get(*gpt2, "transformer.wte.weight").role, Role::kEmbedding);
  EXPECT_EQ(get(*gpt2, "transformer.wpe.weight").role, Role::kEmbedding);
  EXPECT_EQ(get(*gpt2, "transformer.h.1.attn.c_attn.weight").role, Role::kMatrix);
  EXPECT_TRUE(get(*gpt2, "transformer.h.1.attn.c_attn.weight").rows_are_inputs);
  EXPECT_EQ(get(*gpt2, "transformer.h.1.attn.c_attn.weight").group, 2u);
  EXPECT_EQ(get(*gpt2, "transformer.h.1.attn.c_attn.bias").role, Role::kVector);
  EXPECT_EQ(get(*gpt2, "transformer.ln_f.weight").group, 3u);
  EXPECT_EQ(gpt2->output_embedding(), gpt2->input_embedding());
  EXPECT_EQ(get(*llama, "lm_head.weight").role, Role::kEmbedding);
  EXPECT_EQ(get(*llama, "lm_head.weight").group, 3u);
  EXPECT_EQ(llama->tensors()[llama->output_embedding()].name, "lm_head.weight");
  EXPECT_FALSE(get(*llama, "model.layers.0.mlp.down_proj.weight").rows_are_inputs);
  v1::ModelSpec spec = TinySpec("gpt2");
  spec.set_bias(false);
  const std::unique_ptr<Network> unbiased = NewNetwork(spec, kVocab);
  for (const TensorSpec& tensor : unbiased->tensors().tensors()) {
    EXPECT_EQ(tensor.name.find(".bias"), std::string::npos) << tensor.name;
  }
}

TEST(DecoderTensors, RefuseAnArchitectureThatCannotBe) {
  const auto message = [](const char* family, void (*change)(v1::ModelSpec*), uint32_t vocab = kVocab) {
    v1::ModelSpec spec = TinySpec(family);
    change(&spec);
    const auto network = CreateNetwork(spec, vocab);
    EXPECT_EQ(network.status().code(), absl::StatusCode::kInvalidArgument) << network.status();
    return std::string(network.status().message());
  };
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_family("rwkv"); }), HasSubstr("'rwkv'"));
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_heads(5); }), HasSubstr("multiple of heads 5"));
  EXPECT_THAT(message("llama", [](v1::ModelSpec* spec) { spec->set_kv_heads(3); }), HasSubstr("kv_heads 3"));
  EXPECT_THAT(message("llama", [](v1::ModelSpec* spec) { spec->set_kv_heads(0); }), HasSubstr("kv_heads 0"));
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_kv_heads(2); }), HasSubstr("kv_heads"));
  EXPECT_THAT(message("llama",
                      [](v1::ModelSpec* spec) {
                        spec->set_heads(8);
                        spec->set_kv_heads(8);
                      }),
              HasSubstr("must be even"));
  EXPECT_THAT(message("qwen2", [](v1::ModelSpec* spec) { spec->set_hidden_size(20); }), HasSubstr("must be even"));
  EXPECT_THAT(message("llama", [](v1::ModelSpec* spec) { spec->set_sliding_window(8); }),
              HasSubstr("llama has no sliding_window"));
  EXPECT_THAT(message("mistral", [](v1::ModelSpec* spec) { spec->set_sliding_window(0); }),
              HasSubstr("sliding_window must be at least 1"));
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_layers(0); }), HasSubstr("layers"));
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_context(1 << 30); }), HasSubstr("supported"));
  EXPECT_THAT(message("gpt2", [](v1::ModelSpec* spec) { spec->set_intermediate_size(0); }),
              HasSubstr("intermediate_size"));
  EXPECT_THAT(message(
                  "gpt2", [](v1::ModelSpec*) {}, 0),
              HasSubstr("vocabulary"));
}

// ---- start values ----

TEST(StartValuesTest, HaveTheStatedMoments) {
  v1::ModelSpec spec = TinySpec("gpt2");
  spec.set_hidden_size(128);
  spec.set_intermediate_size(512);
  spec.set_init_std(0.02);
  spec.set_layers(8);
  const std::unique_ptr<Network> network = NewNetwork(spec, 1000);
  for (int i = 0; i < network->tensors().size(); ++i) {
    const TensorSpec& tensor = network->tensors()[i];
    std::vector<float> values(static_cast<size_t>(tensor.size));
    StartValues(tensor, i, 5, 0, absl::MakeSpan(values));
    if (tensor.shape.size() == 1) {
      const float expected =
          tensor.name.find("ln_") != std::string::npos && tensor.name.find(".weight") != std::string::npos ? 1 : 0;
      EXPECT_THAT(values, ::testing::Each(expected)) << tensor.name;
      continue;
    }
    // What adds to the residual stream is smaller by sqrt(2 * 8 layers) = 4.
    const double std = tensor.name.find("c_proj") != std::string::npos ? 0.005 : 0.02;
    double sum = 0, squares = 0, cubes = 0, fourths = 0, products = 0;
    const double n = static_cast<double>(values.size());
    for (size_t at = 0; at < values.size(); ++at) {
      const double z = static_cast<double>(values[at]) / std;
      sum += z;
      squares += z * z;
      cubes += z * z * z;
      fourths += z * z * z * z;
      if (at > 0) products += z * static_cast<double>(values[at - 1]) / std;
    }
    // Five standard errors of each.
    EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n)) << tensor.name;
    EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n)) << tensor.name;
    EXPECT_NEAR(cubes / n, 0, 5 * std::sqrt(15 / n)) << tensor.name;
    EXPECT_NEAR(fourths / n, 3, 5 * std::sqrt(96 / n)) << tensor.name;
    EXPECT_NEAR(products / n, 0, 5 / std::sqrt(n)) << tensor.name;
  }
}

TEST(StartValuesTest, DependOnSeedTensorAndPlaceAlone) {
  TensorSpec spec;
  spec.start = Start::kNormal;
  spec.start_size = 0.02f;
  std::vector<float> whole(1003), other(1003);
  StartValues(spec, 3, 5, 0, absl::MakeSpan(whole));
  for (const size_t piece : {4, 64, 500}) {
    std::vector<float> pieces;
    for (size_t begin = 0; begin < whole.size(); begin += piece) {
      std::vector<float> values(std::min(piece, whole.size() - begin));
      StartValues(spec, 3, 5, static_cast<int64_t>(begin), absl::MakeSpan(values));
      pieces.insert(pieces.end(), values.begin(), values.end());
    }
    EXPECT_TRUE(SameBits(pieces, whole)) << piece;
  }
  const auto same = [&] {
    int count = 0;
    for (size_t i = 0; i < whole.size(); ++i) count += whole[i] == other[i];
    return count;
  };
  StartValues(spec, 3, 6, 0, absl::MakeSpan(other));
  EXPECT_LT(same(), 5);
  StartValues(spec, 4, 5, 0, absl::MakeSpan(other));
  EXPECT_LT(same(), 5);
}

// ---- memory ----

int64_t MappedBytes() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

TEST(DecoderMemory, OfASmallTrainingStaysSmall) {
  v1::ModelSpec spec = TinySpec("gpt2");
  spec.set_layers(6);
  spec.set_hidden_size(384);
  spec.set_heads(6);
  spec.set_kv_heads(6);
  spec.set_intermediate_size(4 * 384);
  spec.set_context(256);
  const std::unique_ptr<Network> network = NewNetwork(spec, 8192);
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const int64_t before = MappedBytes();
  const Arena weights = *Arena::Create(network->tensors().floats()),
              gradients = *Arena::Create(network->tensors().floats());
  const CausalLm objective = *CausalLm::Create(network.get(), &compute, 4 * 256, 256, /*for_training=*/true);
  const int64_t bytes = MappedBytes() - before;
  EXPECT_GT(bytes, 8 * network->tensors().parameters());
  EXPECT_LT(bytes, 420'000'000);
}

}  // namespace
}  // namespace millrace::model
