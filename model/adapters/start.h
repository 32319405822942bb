// Says how an adapter begins.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/adapters/adapter.h"
#include "model/families/network.h"

namespace millrace::model {

// Fills `weights`, laid out as the adapter's tensors: a function of the network's weights, the seed and the tokens
// alone. A prompt (prompt_tuning) begins as the embeddings of `init_tokens`, over and over, unless there are none.
// Requires ids below the network's vocab_size.
absl::Status StartAdapter(const kernels::Compute& compute, const Network& network, const float* network_weights,
                          const Adapter& adapter, uint64_t seed, absl::Span<const uint32_t> init_tokens,
                          float* weights);

}  // namespace millrace::model
