// Whole models against what PyTorch computed with the same weights (tests/golden/make_model_goldens.py).
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "model/formats/hugging_face.h"
#include "model/layers/linear.h"
#include "model/objectives/causal_lm.h"
#include "testing/status.h"

namespace millrace::model {
namespace {

absl::Status NothingToWaitFor(uint32_t) { return absl::OkStatus(); }

struct Golden {
  std::unique_ptr<Network> network;
  std::vector<float> weights;
  std::unique_ptr<SafetensorsFile> answers;
  std::vector<uint32_t> tokens;
  int64_t rows = 0, columns = 0;

  template <typename T>
  std::vector<T> Answer(const std::string& name) const {
    const SafetensorsEntry* const entry = answers->header().Find(name);
    if (entry == nullptr) {
      ADD_FAILURE() << name;
      return {};
    }
    const absl::string_view bytes = answers->bytes(*entry);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

Golden Load(const std::string& family) {
  const std::string folder = std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/model/" + family;
  Golden golden;
  const absl::StatusOr<Configuration> configuration = ReadConfig(folder);
  EXPECT_OK(configuration);
  golden.network = *CreateNetwork(configuration->spec, configuration->vocab_size);
  golden.weights.resize(static_cast<size_t>(golden.network->tensors().floats()));
  EXPECT_OK(ReadWeights(folder, golden.network->tensors(), golden.weights.data()));
  golden.answers = *SafetensorsFile::Open(folder + "/answers.safetensors");
  const std::vector<int64_t> shape = golden.answers->header().Find("tokens")->shape;
  golden.rows = shape[0];
  golden.columns = shape[1];
  for (const int64_t token : golden.Answer<int64_t>("tokens")) golden.tokens.push_back(static_cast<uint32_t>(token));
  return golden;
}

class Family : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, Family, ::testing::Values("gpt2", "llama", "mistral", "qwen2", "lstm", "cnn"),
                         [](const auto& info) { return info.param; });

TEST_P(Family, LogitsAreThoseOfPyTorch) {
  const Golden golden = Load(GetParam());
  const kernels::Compute compute(kernels::DetectIsa(), 1);
  const Network& network = *golden.network;
  const int64_t columns = golden.columns - 1, tokens = golden.rows * columns, vocab = network.vocab_size();
  const auto memory = *network.NewMemory(tokens, columns, /*for_training=*/false);
  const absl::StatusOr<const float*> outputs =
      network.Forward(compute, golden.weights.data(), {golden.tokens.data(), golden.rows, columns, golden.columns}, {},
                      &NothingToWaitFor, memory.get());
  ASSERT_OK(outputs);
  std::vector<float> logits(static_cast<size_t>(tokens * vocab));
  LinearForward(compute, {network.hidden_size(), vocab, false, kernels::Precision::kF32}, *outputs, tokens,
                golden.weights.data() + network.tensors()[network.output_embedding()].offset, nullptr, logits.data(),
                vocab);
  const std::vector<float> expected = golden.Answer<float>("logits");
  ASSERT_EQ(logits.size(), expected.size());
  for (size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], expected[i], 2e-5) << i;
}

TEST_P(Family, LossAndGradientsAreThoseOfPyTorch) {
  const Golden golden = Load(GetParam());
  const kernels::Compute compute(kernels::DetectIsa(), 2);
  const Network& network = *golden.network;
  CausalLm objective = *CausalLm::Create(&network, &compute, golden.rows * (golden.columns - 1), golden.columns - 1,
                                         /*for_training=*/true);
  std::vector<float> gradients(golden.weights.size(), 0.0f);
  const Batch batch = {golden.tokens.data(), golden.rows, golden.columns};
  const absl::StatusOr<double> loss = objective.Gradients(golden.weights.data(), batch, {}, 1.0f, &NothingToWaitFor,
                                                          gradients.data(), &NothingToWaitFor);
  ASSERT_OK(loss);
  EXPECT_NEAR(*loss, golden.Answer<double>("loss")[0], 1e-4);
  for (const TensorSpec& spec : network.tensors().tensors()) {
    const std::vector<float> expected = golden.Answer<float>("gradient." + spec.name);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), spec.size) << spec.name;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(gradients[static_cast<size_t>(spec.offset) + i], expected[i], 5e-5 * (1 + std::fabs(expected[i])))
          << spec.name << " " << i;
    }
  }
}

}  // namespace
}  // namespace millrace::model
