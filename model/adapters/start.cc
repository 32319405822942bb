#include "model/adapters/start.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/adapters/linear_adapter.h"
#include "model/tensor_list.h"

namespace millrace::model {
namespace {

// Apart from those of the network's tensors.
constexpr int kFirstIndex = 1 << 24;

}  // namespace

absl::Status StartAdapter(const kernels::Compute& compute, const Network& network, const float* network_weights,
                          const Adapter& adapter, uint64_t seed, absl::Span<const uint32_t> init_tokens,
                          float* weights) {
  const TensorList& tensors = adapter.tensors();
  for (int i = 0; i < tensors.size(); ++i) {
    if (tensors[i].start == Start::kRowNorms) continue;
    StartValues(tensors[i], kFirstIndex + i, seed, 0,
                absl::MakeSpan(weights + tensors[i].offset, static_cast<size_t>(tensors[i].size)));
  }
  for (const LinearSite& site : network.linear_sites()) {
    const Adapter::AtLinear& at = adapter.at(site.layer, site.module);
    if (at.magnitude < 0) continue;
    std::vector<float> matrix(static_cast<size_t>(site.outputs * site.inputs));
    RowNorms(compute, adapter, at, nullptr, network.linear_shape(site),
             network_weights + network.tensors()[site.tensors.weight].offset, matrix.data(),
             weights + tensors[at.magnitude].offset);
  }
  if (init_tokens.empty()) return absl::OkStatus();
  const int64_t width = adapter.virtual_width();
  float* const table = weights + tensors[adapter.encoder().table].offset;
  const float* const embeddings = network_weights + network.tensors()[network.input_embedding()].offset;
  for (int64_t token = 0; token < adapter.virtual_tokens(); ++token) {
    const uint32_t id = init_tokens[static_cast<size_t>(token) % init_tokens.size()];
    if (id >= network.vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not below the vocabulary's ", network.vocab_size()));
    }
    std::copy_n(embeddings + static_cast<int64_t>(id) * width, width, table + token * width);
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
