// Little models with weights drawn from a key.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "testing/status.h"

namespace millrace::model {

inline absl::Status NothingToWaitFor(uint32_t) { return absl::OkStatus(); }

// Two layers, of transformers of four heads; all but GPT-2's and BERT's share keys and values by two. Mistral's window
// is shorter than the context.
inline v1::ModelSpec TinySpec(const std::string& family, const std::string& precision = "f32") {
  v1::ModelSpec spec;
  spec.set_family(family);
  spec.set_layers(2);
  spec.set_hidden_size(24);
  const bool transformer = family != "lstm" && family != "cnn";
  if (transformer) {
    spec.set_heads(4);
    spec.set_kv_heads(family == "gpt2" || family == "bert" ? 4 : 2);
    spec.set_intermediate_size(40);
  }
  if (family == "mistral") spec.set_sliding_window(21);
  if (family == "cnn") spec.set_kernel_size(3);
  spec.set_context(80);
  spec.set_precision(precision);
  spec.set_dropout(0);
  spec.set_tied_embeddings(family == "gpt2" || family == "lstm" || family == "bert");
  spec.set_rope_theta(10000);
  spec.set_norm_epsilon(1e-5);
  spec.set_init_std(0.3);
  spec.set_bias(family == "gpt2" || family == "bert" || !transformer);
  return spec;
}

inline std::unique_ptr<Network> NewNetwork(const v1::ModelSpec& spec, uint32_t vocab) {
  auto network = CreateNetwork(spec, vocab);
  EXPECT_OK(network);
  return *std::move(network);
}

// Far from the usual start, so that every term matters: biases are not 0 and gains not 1. Gaps are NaN: nobody reads
// them.
inline std::vector<float> RandomWeights(const TensorList& tensors, uint64_t key) {
  std::vector<float> weights(static_cast<size_t>(tensors.floats()), NAN);
  for (int i = 0; i < tensors.size(); ++i) {
    const TensorSpec& tensor = tensors[i];
    for (int64_t at = 0; at < tensor.size; ++at) {
      const float uniform = UniformFloat(Philox(key)(static_cast<uint64_t>(i), static_cast<uint64_t>(at))[0]);
      weights[static_cast<size_t>(tensor.offset + at)] =
          0.5f * (2 * uniform - 1) + (tensor.start == Start::kOnes ? 1.0f : 0.0f);
    }
  }
  return weights;
}

inline std::vector<uint32_t> RandomIds(uint64_t key, size_t count, uint32_t vocab) {
  std::vector<uint32_t> ids(count);
  for (size_t i = 0; i < count; ++i) ids[i] = Philox(key)(1, i)[0] % vocab;
  return ids;
}

}  // namespace millrace::model
