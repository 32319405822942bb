// Says how probable continuations are behind their contexts: what multiple choice, minimal pairs and perplexity are
// measured with.
//
// Many go through the model together: sorted by length and packed into the rows of a batch, each a sequence of its own.
// A token's bits depend on its sequence alone, so that results depend neither on what else is scored nor on threads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/families/network.h"

namespace millrace::model {

struct ContinuationTokens {
  std::vector<uint32_t> context;  // at least one token: it predicts the first of `ids`
  std::vector<uint32_t> ids;      // at least one
};

struct ContinuationScore {
  // log p(ids[i] | context, ids[0], …, ids[i - 1]), in nats; as many as there are ids.
  std::vector<float> log_probabilities;
  // Tokens of the context that no prediction sees, because the model's context is full.
  uint64_t cut = 0;
};

// One score for each, in order.
//
// A sequence that is longer than the model's context and the last token, which is a target only, loses the beginning of
// its context. A continuation that alone is longer than the model's context is scored in the blocks in which
// LanguageModel::LogProbabilities scores with stride == context: predictions near the beginning of a block see little.
// INVALID_ARGUMENT for a context or continuation without tokens, an id beyond the vocabulary and a network with a
// scalar head, naming the continuation by its index; RESOURCE_EXHAUSTED if there is not so much memory.
absl::StatusOr<std::vector<ContinuationScore>> ScoreContinuations(const Network& network,
                                                                  const kernels::Compute& compute,
                                                                  const NetworkWeights& weights,
                                                                  absl::Span<const ContinuationTokens> continuations);

}  // namespace millrace::model
