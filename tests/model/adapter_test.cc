// Adapters against what Hugging Face's peft computed with the same files (tests/golden/make_adapter_goldens.py), and
// against themselves: token by token, merged, packed, from threads and instruction sets.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/safetensors.h"
#include "gtest/gtest.h"
#include "kernels/bfloat16.h"
#include "kernels/compute.h"
#include "model/adapters/linear_adapter.h"
#include "model/adapters/orthogonality.h"
#include "model/adapters/start.h"
#include "model/families/network.h"
#include "model/formats/hugging_face.h"
#include "model/formats/peft.h"
#include "model/layers/linear.h"
#include "model/objectives/causal_lm.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

const std::string& Goldens() {
  static const auto* const folder = new std::string(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden"));
  return *folder;
}

struct Base {
  std::unique_ptr<Network> network;
  std::vector<float> weights;
};

Base LoadBase(const std::string& family, const std::string& precision = "f32", double dropout = 0) {
  const std::string folder = absl::StrCat(Goldens(), "/model/", family);
  Configuration configuration = *ReadConfig(folder);
  configuration.spec.set_precision(precision);
  configuration.spec.set_dropout(dropout);
  Base base;
  base.network = *CreateNetwork(configuration.spec, configuration.vocab_size);
  base.network->ReserveVirtualTokens(3);
  base.weights.resize(static_cast<size_t>(base.network->tensors().floats()));
  EXPECT_OK(ReadWeights(folder, base.network->tensors(), base.weights.data()));
  if (precision == "bf16") kernels::KeepBf16(base.weights.data(), base.network->tensors().floats());
  return base;
}

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* const entry = file.header().Find(name);
  if (entry == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  const absl::string_view bytes = file.bytes(*entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<float> Logits(const Base& base, const NetworkWeights& weights, const std::vector<float>& outputs) {
  const int64_t hidden = base.network->hidden_size(), vocab = base.network->vocab_size();
  const auto tokens = static_cast<int64_t>(outputs.size()) / hidden;
  std::vector<float> logits(static_cast<size_t>(tokens * vocab));
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  LinearForward(compute, {hidden, vocab, false, base.network->precision()}, outputs.data(), tokens,
                weights.base + base.network->tensors()[base.network->output_embedding()].offset, nullptr, logits.data(),
                vocab);
  return logits;
}

std::vector<float> Outputs(const Base& base, const NetworkWeights& weights, const TokenMatrix& tokens,
                           const kernels::Compute& compute) {
  const auto memory = *base.network->NewMemory(tokens.tokens(), tokens.columns, /*for_training=*/false);
  const absl::StatusOr<const float*> outputs =
      base.network->Forward(compute, weights, tokens, {}, &IgnoreGroup, memory.get());
  if (!outputs.ok()) {
    ADD_FAILURE() << outputs.status();
    return {};
  }
  return std::vector<float>(*outputs, *outputs + tokens.tokens() * base.network->hidden_size());
}

// The adapter of a golden; with `training`, the network that made its virtual tokens instead of these.
StoredAdapter LoadAdapter(const Base& base, const std::string& folder, const SafetensorsFile& answers, bool training) {
  absl::StatusOr<StoredAdapter> stored = ReadAdapter(folder, *base.network);
  EXPECT_OK(stored);
  if (!training) return *std::move(stored);
  v1::AdapterSpec spec = stored->adapter->spec();
  spec.set_type(spec.type() == "prompt_tuning" ? "p_tuning" : "prefix_tuning");
  if (answers.header().Find("training.lstm_head.weight_ih_l0") != nullptr) spec.set_encoder("lstm");
  StoredAdapter made;
  made.adapter = *Adapter::Create(spec, base.network->spec(), base.network->linear_sites());
  made.weights.resize(static_cast<size_t>(made.adapter->tensors().floats()));
  for (const TensorSpec& tensor : made.adapter->tensors().tensors()) {
    const std::vector<float> values =
        Values<float>(answers, absl::StrReplaceAll(tensor.name, {{"prompt_encoder.", "training."}}));
    EXPECT_EQ(static_cast<int64_t>(values.size()), tensor.size) << tensor.name;
    std::copy(values.begin(), values.end(), made.weights.begin() + tensor.offset);
  }
  return made;
}

struct Case {
  std::string family;
  std::string method;
  bool training = false;
};

class Peft : public ::testing::TestWithParam<Case> {
 protected:
  Peft()
      : base_(LoadBase(GetParam().family)),
        folder_(absl::StrCat(Goldens(), "/adapters/", GetParam().family, "/", GetParam().method)),
        answers_(*SafetensorsFile::Open(folder_ + "/answers.safetensors")),
        stored_(LoadAdapter(base_, folder_, *answers_, GetParam().training)),
        active_(stored_.active()),
        weights_(base_.weights.data(), absl::MakeConstSpan(&active_, 1)) {
    for (const int64_t token : Values<int64_t>(*answers_, "tokens")) tokens_.push_back(static_cast<uint32_t>(token));
    const std::vector<int64_t> shape = answers_->header().Find("tokens")->shape;
    inputs_ = {tokens_.data(), shape[0], shape[1] - 1, shape[1]};
  }

  Base base_;
  const std::string folder_;
  const std::unique_ptr<SafetensorsFile> answers_;
  const StoredAdapter stored_;
  const ActiveAdapter active_;
  const NetworkWeights weights_;
  std::vector<uint32_t> tokens_;
  TokenMatrix inputs_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* family : {"gpt2", "llama"}) {
    for (const char* method :
         {"lora", "lora_all", "dora", "adalora", "adalora_pruned", "ia3", "prompt_tuning", "p_tuning_mlp",
          "p_tuning_lstm", "prefix_tuning", "prefix_projection", "llama_adapter_1", "llama_adapter_2"}) {
      cases.push_back({family, method});
    }
    cases.push_back({family, "p_tuning_mlp", true});
    cases.push_back({family, "p_tuning_lstm", true});
    cases.push_back({family, "prefix_projection", true});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Golden, Peft, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return absl::StrCat(info.param.family, "_", info.param.method, info.param.training ? "_network" : "");
});

TEST_P(Peft, LogitsAreThoseOfPeft) {
  const std::vector<float> expected = Values<float>(*answers_, "logits");
  const std::vector<float> logits = Logits(base_, weights_, Outputs(base_, weights_, inputs_, compute_));
  ASSERT_EQ(logits.size(), expected.size());
  double largest = 1;
  for (const float logit : expected) largest = std::max(largest, std::fabs(static_cast<double>(logit)));
  for (size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], expected[i], 1e-5 * largest) << i;
  // The adapter does something.
  const std::vector<float> without = Logits(base_, weights_, Outputs(base_, base_.weights.data(), inputs_, compute_));
  double difference = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    difference = std::max(difference, std::fabs(static_cast<double>(without[i]) - static_cast<double>(expected[i])));
  }
  EXPECT_GT(difference, 1e-2);
}

TEST_P(Peft, LossAndGradientsAreThoseOfPeft) {
  const TensorList& tensors = stored_.adapter->tensors();
  const int64_t base_floats = base_.network->tensors().floats();
  std::vector<bool> trainable(static_cast<size_t>(base_.network->tensors().size()), false);
  trainable.resize(trainable.size() + static_cast<size_t>(tensors.size()), true);
  CausalLm objective =
      *CausalLm::Create(base_.network.get(), &compute_, inputs_.tokens(), inputs_.columns, /*for_training=*/true);
  std::vector<float> gradients(static_cast<size_t>(base_floats + tensors.floats()), 0.0f);
  const Batch batch = {tokens_.data(), inputs_.rows, inputs_.columns + 1};
  // Twice: what is left of one pass must not go into the next.
  for (int i = 0; i < 2; ++i) {
    std::fill(gradients.begin(), gradients.end(), 0.0f);
    const absl::StatusOr<double> loss =
        objective.Gradients(weights_, batch, {}, 1.0f, &IgnoreGroup, gradients.data(), &IgnoreGroup, &trainable);
    ASSERT_OK(loss);
    EXPECT_NEAR(*loss, Values<double>(*answers_, "loss")[0], 2e-4);
  }
  for (int64_t i = 0; i < base_floats; ++i) ASSERT_EQ(gradients[static_cast<size_t>(i)], 0.0f) << i;
  for (const TensorSpec& spec : tensors.tensors()) {
    const std::string name = absl::StrReplaceAll(spec.name, {{"prompt_encoder.", "training."}});
    const std::vector<float> expected = Values<float>(*answers_, "gradient." + name);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), spec.size) << spec.name;
    double largest = 1;
    for (const float value : expected) largest = std::max(largest, std::fabs(static_cast<double>(value)));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(gradients[static_cast<size_t>(base_floats + spec.offset) + i], expected[i], 3e-5 * largest)
          << spec.name << " " << i;
    }
  }
}

TEST_P(Peft, TokenByTokenGivesTheSameBits) {
  for (const char* const precision : {"f32", "bf16"}) {
    const Base base = LoadBase(GetParam().family, precision);
    const NetworkWeights weights(base.weights.data(), absl::MakeConstSpan(&active_, 1));
    const std::vector<float> whole = Outputs(base, weights, inputs_, compute_);
    const int64_t hidden = base.network->hidden_size();
    const auto cache = *base.network->NewCache(inputs_.rows, inputs_.columns, inputs_.tokens());
    ASSERT_OK(base.network->Begin(compute_, weights, cache.get()));
    // Some tokens of one row, then one of each at a time.
    const auto expect = [&](const float* outputs, int64_t row, int64_t column, int64_t count) {
      EXPECT_EQ(std::memcmp(outputs, whole.data() + (row * inputs_.columns + column) * hidden,
                            static_cast<size_t>(count * hidden) * sizeof(float)),
                0)
          << precision << " row " << row << " column " << column;
    };
    for (int64_t row = 0; row < inputs_.rows; ++row) {
      const absl::Span<const uint32_t> ids(tokens_.data() + row * inputs_.row_stride, 3);
      const Network::Appended appended = {row, ids};
      expect(base.network->Extend(compute_, weights, absl::MakeConstSpan(&appended, 1), cache.get()), row, 0, 3);
    }
    for (int64_t column = 3; column < inputs_.columns; ++column) {
      std::vector<Network::Appended> appended;
      for (int64_t row = 0; row < inputs_.rows; ++row) {
        appended.push_back({row, absl::MakeConstSpan(tokens_.data() + row * inputs_.row_stride + column, 1)});
      }
      const float* const outputs = base.network->Extend(compute_, weights, appended, cache.get());
      for (int64_t row = 0; row < inputs_.rows; ++row) expect(outputs + row * hidden, row, column, 1);
    }
  }
}

TEST_P(Peft, ASequenceIsAloneInAPackedRow) {
  const std::vector<float> whole = Outputs(base_, weights_, inputs_, compute_);
  // The rows' first five and three tokens share rows of eight.
  const std::vector<uint32_t> ids = {tokens_[0], tokens_[1], tokens_[2],  tokens_[3],
                                     tokens_[4], tokens_[9], tokens_[10], tokens_[11]};
  const std::vector<uint32_t> starts = {0, 0, 0, 0, 0, 5, 5, 5};
  const std::vector<float> packed = Outputs(base_, weights_, {ids.data(), 1, 8, 8, starts.data()}, compute_);
  const auto bytes = static_cast<size_t>(base_.network->hidden_size()) * sizeof(float);
  const auto hidden = base_.network->hidden_size();
  EXPECT_EQ(std::memcmp(packed.data(), whole.data(), 5 * bytes), 0);
  EXPECT_EQ(std::memcmp(packed.data() + 5 * hidden, whole.data() + inputs_.columns * hidden, 3 * bytes), 0);
}

TEST_P(Peft, MergedWeightsGiveTheSameLogits) {
  std::vector<float> merged = base_.weights;
  const absl::Status status = MergeAdapter(compute_, *base_.network, stored_, merged.data());
  if (!stored_.adapter->merges()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(merged, base_.weights);
    return;
  }
  ASSERT_OK(status);
  const std::vector<float> logits = Logits(base_, weights_, Outputs(base_, weights_, inputs_, compute_));
  const std::vector<float> of_merged = Logits(base_, merged.data(), Outputs(base_, merged.data(), inputs_, compute_));
  for (size_t i = 0; i < logits.size(); ++i) {
    ASSERT_NEAR(of_merged[i], logits[i], 2e-5 * (1 + std::fabs(logits[i]))) << i;
  }
}

TEST_P(Peft, BitsDoNotDependOnThreadsAndInstructionSets) {
  const TensorList& tensors = stored_.adapter->tensors();
  std::vector<bool> trainable(static_cast<size_t>(base_.network->tensors().size()), false);
  trainable.resize(trainable.size() + static_cast<size_t>(tensors.size()), true);
  const Philox key(7);
  std::vector<float> first;
  for (const kernels::Isa isa : {kernels::Isa::kScalar, kernels::Isa::kAvx2, kernels::DetectIsa()}) {
    for (const int threads : {1, 3}) {
      const kernels::Compute compute(isa, threads);
      CausalLm objective =
          *CausalLm::Create(base_.network.get(), &compute, inputs_.tokens(), inputs_.columns, /*for_training=*/true);
      std::vector<float> gradients(static_cast<size_t>(base_.network->tensors().floats() + tensors.floats()), 0.0f);
      const Batch batch = {tokens_.data(), inputs_.rows, inputs_.columns + 1};
      ASSERT_OK(
          objective.Gradients(weights_, batch, {&key}, 1.0f, &IgnoreGroup, gradients.data(), &IgnoreGroup, &trainable));
      if (first.empty()) first = gradients;
      EXPECT_EQ(std::memcmp(first.data(), gradients.data(), first.size() * sizeof(float)), 0)
          << kernels::IsaName(isa) << " " << threads;
    }
  }
}

// What a new adapter begins with: nothing changes yet, but where something random is before the text.
TEST_P(Peft, ANewAdapterBeginsAsItShould) {
  const Adapter& adapter = *stored_.adapter;
  std::vector<float> weights(static_cast<size_t>(adapter.tensors().floats()));
  const std::vector<uint32_t> tokens = {7, 3};
  const bool from_text = adapter.spec().type() == "prompt_tuning";
  ASSERT_OK(StartAdapter(compute_, *base_.network, base_.weights.data(), adapter, 5,
                         from_text ? absl::MakeConstSpan(tokens) : absl::Span<const uint32_t>(), weights.data()));
  if (from_text) {
    const int64_t width = base_.network->hidden_size();
    const float* const table =
        base_.weights.data() + base_.network->tensors()[base_.network->input_embedding()].offset;
    for (int64_t token = 0; token < adapter.virtual_tokens(); ++token) {
      const int64_t id = token % 2 == 0 ? 7 : 3;
      EXPECT_TRUE(std::equal(table + id * width, table + (id + 1) * width, weights.data() + token * width));
    }
  }
  if (adapter.virtual_tokens() > 0) return;
  const ActiveAdapter active = {&adapter, weights.data()};
  const std::vector<float> with =
      Outputs(base_, {base_.weights.data(), absl::MakeConstSpan(&active, 1)}, inputs_, compute_);
  const std::vector<float> without = Outputs(base_, base_.weights.data(), inputs_, compute_);
  for (size_t i = 0; i < with.size(); ++i) ASSERT_NEAR(with[i], without[i], 1e-5 * (1 + std::fabs(without[i])));
}

// The loss with dropout, whose masks the key draws, is a function of the weights like any other.
TEST_P(Peft, WithDropoutGradientsAreTheSlopesOfTheLoss) {
  struct Rates {
    double adapter, model;
  };
  const Philox key(5);
  for (const Rates& rates : {Rates{0.4, 0}, Rates{0, 0.3}, Rates{0.4, 0.3}}) {
    if (rates.adapter > 0 && !stored_.adapter->is_low_rank()) continue;
    const Base base = LoadBase(GetParam().family, "f32", rates.model);
    v1::AdapterSpec spec = stored_.adapter->spec();
    spec.set_dropout(rates.adapter);
    std::vector<int64_t> ranks;
    for (const LinearSite& site : base.network->linear_sites()) {
      ranks.push_back(stored_.adapter->at(site.layer, site.module).rank);
    }
    const bool pruned = GetParam().method == "adalora_pruned";
    const auto adapter = *Adapter::Create(spec, base.network->spec(), base.network->linear_sites(),
                                          pruned ? absl::MakeConstSpan(ranks) : absl::Span<const int64_t>());
    const TensorList& tensors = adapter->tensors();
    const auto base_floats = static_cast<size_t>(base.network->tensors().floats());
    std::vector<bool> trainable(static_cast<size_t>(base.network->tensors().size()), false);
    trainable.resize(trainable.size() + static_cast<size_t>(tensors.size()), true);
    CausalLm objective =
        *CausalLm::Create(base.network.get(), &compute_, inputs_.tokens(), inputs_.columns, /*for_training=*/true);
    const Batch batch = {tokens_.data(), inputs_.rows, inputs_.columns + 1};
    const auto loss_of = [&](const std::vector<float>& weights, const Noise& noise, std::vector<float>* gradients) {
      gradients->assign(base_floats + weights.size(), 0.0f);
      const ActiveAdapter active = {adapter.get(), weights.data()};
      const NetworkWeights all(base.weights.data(), absl::MakeConstSpan(&active, 1));
      return *objective.Gradients(all, batch, noise, 1.0f, &IgnoreGroup, gradients->data(), &IgnoreGroup, &trainable);
    };
    std::vector<float> gradients, ignored;
    const double loss = loss_of(stored_.weights, {&key}, &gradients);
    EXPECT_GT(std::fabs(loss - loss_of(stored_.weights, {}, &ignored)), 1e-2) << "nothing was dropped";
    gradients.erase(gradients.begin(), gradients.begin() + static_cast<std::ptrdiff_t>(base_floats));

    // Each tensor along its own gradient, and all together.
    for (int index = -1; index < tensors.size(); ++index) {
      double square = 0;
      std::vector<double> direction(gradients.size(), 0.0);
      for (int i = 0; i < tensors.size(); ++i) {
        if (index >= 0 && i != index) continue;
        for (int64_t j = tensors[i].offset; j < tensors[i].offset + tensors[i].size; ++j) {
          direction[static_cast<size_t>(j)] = static_cast<double>(gradients[static_cast<size_t>(j)]);
          square += direction[static_cast<size_t>(j)] * direction[static_cast<size_t>(j)];
        }
      }
      const double slope = std::sqrt(square);
      const std::string& name = index < 0 ? GetParam().method : tensors[index].name;
      ASSERT_GT(slope, 1e-3) << name;
      const double step = std::min(0.02 / slope, 4e-3);
      const auto at = [&](double distance) {
        std::vector<float> moved = stored_.weights;
        for (size_t j = 0; j < moved.size(); ++j) {
          moved[j] += static_cast<float>(distance * direction[j] / slope);
        }
        // DoRA takes norms for constants: magnitudes follow them.
        for (const LinearSite& site : base.network->linear_sites()) {
          const Adapter::AtLinear& linear = adapter->at(site.layer, site.module);
          if (linear.magnitude < 0) continue;
          std::vector<float> matrix(static_cast<size_t>(site.inputs * site.outputs));
          std::vector<float> before(static_cast<size_t>(site.outputs)), after = before;
          const float* const weight =
              base.weights.data() + base.network->tensors()[site.tensors.weight].offset;
          RowNorms(compute_, *adapter, linear, stored_.weights.data(), base.network->linear_shape(site), weight,
                   matrix.data(), before.data());
          RowNorms(compute_, *adapter, linear, moved.data(), base.network->linear_shape(site), weight, matrix.data(),
                   after.data());
          for (size_t row = 0; row < after.size(); ++row) {
            moved[static_cast<size_t>(tensors[linear.magnitude].offset) + row] *= after[row] / before[row];
          }
        }
        return loss_of(moved, {&key}, &ignored);
      };
      EXPECT_NEAR((at(step) - at(-step)) / (2 * step), slope, 1e-2 * slope + 3e-3) << name << " " << rates.model;
    }
  }
}

TEST_P(Peft, WrittenAgainIsTheSame) {
  const std::string folder =
      absl::StrCat(::testing::TempDir(), "/adapter-", GetParam().family, GetParam().method, GetParam().training);
  std::filesystem::create_directories(folder);
  ASSERT_OK(WriteAdapter(folder, stored_, base_.network->spec(), "../base", compute_));
  const absl::StatusOr<StoredAdapter> again = ReadAdapter(folder, *base_.network);
  ASSERT_OK(again);
  const ActiveAdapter active = again->active();
  const NetworkWeights weights(base_.weights.data(), absl::MakeConstSpan(&active, 1));
  const std::vector<float> before = Outputs(base_, weights_, inputs_, compute_);
  EXPECT_EQ(before, Outputs(base_, weights, inputs_, compute_));
}

class AdaLora : public ::testing::TestWithParam<const char*> {
 protected:
  AdaLora()
      : base_(LoadBase(GetParam())),
        folder_(absl::StrCat(Goldens(), "/adapters/", GetParam(), "/")),
        stored_(*ReadAdapter(folder_ + "adalora", *base_.network)) {}

  StoredAdapter Copy() const {
    StoredAdapter copy;
    copy.adapter = *Adapter::Create(stored_.adapter->spec(), base_.network->spec(), base_.network->linear_sites());
    copy.weights = stored_.weights;
    return copy;
  }
  // R, as the sum over the groups; adds `scale` times its gradient.
  double Orthogonality(const std::vector<float>& weights, double scale, std::vector<float>* gradients) const {
    gradients->resize(weights.size());
    double sum = 0;
    for (uint32_t group = base_.network->groups(); group-- > 0;) {
      sum += AddOrthogonality(compute_, *stored_.adapter, group, scale, weights.data(), gradients->data());
    }
    return sum;
  }
  // Written and read again.
  StoredAdapter Again(const StoredAdapter& adapter, std::string* config) const {
    const std::string folder = absl::StrCat(::testing::TempDir(), "/pruned-", GetParam());
    std::filesystem::create_directories(folder);
    EXPECT_OK(WriteAdapter(folder, adapter, base_.network->spec(), "../base", compute_));
    *config = *ReadFile(absl::StrCat(folder, "/", kAdapterConfigFile), 1 << 20);
    absl::StatusOr<StoredAdapter> again = ReadAdapter(folder, *base_.network);
    EXPECT_OK(again);
    return *std::move(again);
  }

  const Base base_;
  const std::string folder_;
  const StoredAdapter stored_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
};

INSTANTIATE_TEST_SUITE_P(Families, AdaLora, ::testing::Values("gpt2", "llama"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(AdaLora, DistanceFromOrthogonalIsThatOfPeftAndItsGradientTheSlope) {
  const auto answers = *SafetensorsFile::Open(folder_ + "adalora/answers.safetensors");
  std::vector<float> gradients;
  const double value = Orthogonality(stored_.weights, 3.0, &gradients);
  EXPECT_NEAR(value, Values<double>(*answers, "orthogonality")[0], 1e-5 * value);
  double square = 0;
  for (const float gradient : gradients) square += static_cast<double>(gradient) * static_cast<double>(gradient);
  const double slope = std::sqrt(square);
  const auto at = [&](double distance) {
    std::vector<float> moved = stored_.weights, ignored;
    for (size_t i = 0; i < moved.size(); ++i) {
      moved[i] += static_cast<float>(distance * static_cast<double>(gradients[i]) / slope);
    }
    return 3.0 * Orthogonality(moved, 0, &ignored);
  };
  EXPECT_GT(slope, 0.1);
  EXPECT_NEAR((at(1e-3) - at(-1e-3)) / 2e-3, slope, 2e-3 * slope);
}

TEST_P(AdaLora, WhatIsZeroIsNotWritten) {
  StoredAdapter adapter = Copy();
  // At one layer all, at the next one of four.
  const std::vector<const Adapter::AtLinear*> at = adapter.adapter->triplets();
  const TensorList& tensors = adapter.adapter->tensors();
  float* const first = adapter.weights.data() + tensors[at[0]->e].offset;
  std::fill_n(first, 4, 0.0f);
  adapter.weights[static_cast<size_t>(tensors[at[1]->e].offset) + 2] = 0.0f;
  std::string config;
  const StoredAdapter again = Again(adapter, &config);
  EXPECT_EQ(again.adapter->triplets().size(), at.size() - 1);
  EXPECT_EQ(again.adapter->triplets()[0]->rank, 3);
  const std::string spaceless = absl::StrReplaceAll(config, {{" ", ""}, {"\n", ""}});
  EXPECT_TRUE(absl::StrContains(spaceless, "lora_E\":[false,false,false,false]")) << config;
  EXPECT_TRUE(absl::StrContains(spaceless, "lora_E\":[true,true,false,true]")) << config;
  const std::vector<uint32_t> ids = {1, 2, 3, 4, 5};
  const TokenMatrix inputs = {ids.data(), 1, 5, 5};
  const ActiveAdapter before = adapter.active(), after = again.active();
  EXPECT_EQ(Outputs(base_, {base_.weights.data(), absl::MakeConstSpan(&before, 1)}, inputs, compute_),
            Outputs(base_, {base_.weights.data(), absl::MakeConstSpan(&after, 1)}, inputs, compute_));
}

TEST_P(AdaLora, ANewOneIsWrittenWhole) {
  StoredAdapter adapter = Copy();
  for (const Adapter::AtLinear* const at : adapter.adapter->triplets()) {
    std::fill_n(adapter.weights.data() + adapter.adapter->tensors()[at->e].offset, 4, 0.0f);
  }
  std::string config;
  EXPECT_EQ(Again(adapter, &config).weights, adapter.weights);
  EXPECT_TRUE(absl::StrContains(config, "\"rank_pattern\": null")) << config;
}

}  // namespace
}  // namespace millrace::model
