#include "worker/conformance.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/checksum.h"
#include "common/philox.h"
#include "kernels/conformance.h"
#include "model/families/network.h"
#include "model/objectives/causal_lm.h"
#include "model/objectives/masked_lm.h"

namespace millrace::worker {
namespace {

v1::ModelSpec TinyModel(const char* family, const char* precision) {
  v1::ModelSpec spec;
  spec.set_family(family);
  spec.set_layers(2);
  spec.set_hidden_size(24);
  spec.set_heads(4);
  spec.set_kv_heads(spec.family() == "gpt2" || spec.family() == "bert" ? 4 : 2);
  if (spec.family() == "mistral") spec.set_sliding_window(9);
  if (spec.family() == "cnn") spec.set_kernel_size(3);
  spec.set_intermediate_size(40);
  spec.set_context(70);
  spec.set_precision(precision);
  spec.set_dropout(0.1);
  spec.set_tied_embeddings(true);
  spec.set_rope_theta(10000);
  spec.set_norm_epsilon(1e-5);
  spec.set_init_std(0.3);
  spec.set_bias(true);
  return spec;
}

// Start values, loss and gradients of one batch.
void AddModel(const kernels::Compute& compute, const v1::ModelSpec& spec, Sha256* sum) {
  constexpr uint32_t kVocab = 37;
  constexpr int64_t kRows = 2, kColumns = 71;
  const absl::StatusOr<std::unique_ptr<model::Network>> network = model::CreateNetwork(spec, kVocab);
  const model::TensorList& tensors = (*network)->tensors();
  std::vector<float> weights(static_cast<size_t>(tensors.floats())), gradients(weights.size());
  model::StartWeights(tensors, 7, weights.data());
  std::vector<uint32_t> ids(kRows * kColumns);
  const Philox key(11);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = key(1, i)[0] % kVocab;
  absl::StatusOr<double> loss;
  if ((*network)->extends()) {
    absl::StatusOr<model::CausalLm> objective =
        model::CausalLm::Create(network->get(), &compute, kRows * (kColumns - 1), kColumns - 1, /*for_training=*/true);
    loss = objective->Gradients(weights.data(), {ids.data(), kRows, kColumns}, {&key}, 0.01f, &model::IgnoreGroup,
                                gradients.data(), &model::IgnoreGroup);
  } else {
    // The last row's end is padding.
    constexpr int64_t kInputs = kColumns - 1, kEnd = 60;
    std::vector<uint32_t> starts(kRows * kColumns, 0), types(kRows * kColumns, 0), targets;
    std::fill(starts.end() - (kColumns - kEnd), starts.end(), static_cast<uint32_t>(kEnd));
    std::vector<int64_t> places;
    for (int64_t place = 3; place < kInputs + kEnd; place += 5) {
      places.push_back(place);
      targets.push_back(key(2, static_cast<uint64_t>(place))[0] % kVocab);
    }
    for (int64_t column = 30; column < kEnd; ++column) types[static_cast<size_t>(column)] = 1;
    const std::vector<uint8_t> follows = {1, 0};
    absl::StatusOr<model::MaskedLm> objective =
        model::MaskedLm::Create(network->get(), &compute, kRows * kInputs, kInputs, /*for_training=*/true);
    loss = objective->Gradients(
        weights.data(), {{ids.data(), kRows, kInputs, kColumns, starts.data(), types.data()}, places, targets, follows},
        {&key}, 0.01f, &model::IgnoreGroup, gradients.data(), &model::IgnoreGroup, nullptr, nullptr);
  }
  sum->Update(&*loss, sizeof(*loss));
  for (const model::TensorSpec& tensor : tensors.tensors()) {
    sum->Update(gradients.data() + tensor.offset, static_cast<size_t>(tensor.size) * sizeof(float));
  }
}

}  // namespace

std::string ConformanceDigest(const kernels::Compute& compute) {
  Sha256 sum;
  kernels::AddConformance(compute, &sum);
  for (const char* family : {"gpt2", "llama", "mistral", "qwen2", "bert", "lstm", "cnn"}) {
    for (const char* precision : {"f32", "bf16"}) AddModel(compute, TinyModel(family, precision), &sum);
  }
  return sum.HexDigest();
}

}  // namespace millrace::worker
