// Draws a token from logits.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "common/philox.h"

namespace millrace::model {

struct SamplingOptions {
  double temperature = 1.0;  // logits are divided by it; 0: the largest logit (the smallest id of equals)
  int64_t top_k = 0;         // only the k largest logits; 0: all
  double top_p = 1.0;        // only the smallest set of largest ones whose probabilities reach p (Holtzman et al. 2020)
};

// Draws an id with `uniform` in [0, 1): a function of its arguments alone. Ids share [0, 1) in the order of their
// logits, the largest first, equal ones by their ids; if top_k and top_p cut nothing off, in the order of their ids,
// which needs no sorting. Requires logits that are not empty and hold no NaN, temperature >= 0, top_k >= 0, 0 < top_p
// <= 1.
uint32_t Sample(absl::Span<const float> logits, const SamplingOptions& options, float uniform);

// Draws of the answer to a prompt: key(0, n) is for its n-th token. Each sample of the same prompt has a key of its
// own.
Philox SamplingKey(uint64_t seed, uint64_t sample = 0);

}  // namespace millrace::model
