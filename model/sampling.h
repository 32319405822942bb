// Draws a token from logits.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace millrace::model {

struct SamplingOptions {
  double temperature = 1.0;  // logits are divided by it; 0: the largest logit (the smallest id of equals)
  int64_t top_k = 0;         // only the k largest logits; 0: all
  double top_p = 1.0;        // only the smallest set of largest ones whose probabilities reach p (Holtzman et al. 2020)
};

// Draws an id with `uniform` in [0, 1): a function of its arguments alone. Equal logits count as ordered by their ids.
// Requires logits that are not empty and hold no NaN, temperature >= 0, top_k >= 0, 0 < top_p <= 1.
uint32_t Sample(absl::Span<const float> logits, const SamplingOptions& options, float uniform);

}  // namespace millrace::model
