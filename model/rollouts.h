// Lets a model answer prompts, several answers at a time, and says how probable each token was: what reinforcement
// learning trains on.
//
// Answers that are under way are extended together, so that products have many rows; when one ends, the next takes its
// place. Each element of a product is defined by itself, so that an answer's bits depend on its prompt, its key and the
// options alone. Log-probabilities are the bits that TokenScores gives for the same sequence: there is one engine.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/philox.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "model/sampling.h"

namespace millrace::model {

struct Prompt {
  std::vector<uint32_t> ids;  // at least one
  std::vector<Philox> keys;   // one for each answer that is wanted
};

struct RolloutOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 0;      // of an answer, at least 1
  std::vector<uint32_t> stop;  // tokens that end an answer
  // Whether the answer's tokens so far end it too; a function of them alone. Null: never.
  std::function<bool(absl::Span<const uint32_t> ids)> ends;
};

struct Answer {
  std::vector<uint32_t> ids;  // with the token that ended it
  // Of each, under softmax(logits / temperature) over the whole vocabulary, whatever top_k and top_p left of it;
  // temperature 0 counts as 1.
  std::vector<float> log_probabilities;
  bool stopped = false;  // by a stop token, not by `ends` or the limit of its length
};

// Holds the memory of its passes; one thread at a time.
class Rollouts {
 public:
  // For up to `together` answers at a time, in sequences of prompt and answer of up to `columns` + 1 tokens, the last
  // of which is not looked at. Both outlive this. INVALID_ARGUMENT for a network with a scalar head and for columns
  // beyond the context; RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<Rollouts> Create(const Network* network, const kernels::Compute* compute, int64_t together,
                                         int64_t columns);

  // Answers of the first prompt, in the order of its keys, then of the next. An answer ends at a stop token, at
  // max_tokens or where its sequence is full. INVALID_ARGUMENT for a prompt that is empty, has an id beyond the
  // vocabulary or leaves no room for an answer, and for logits that are not finite.
  absl::StatusOr<std::vector<Answer>> Sample(const NetworkWeights& weights, absl::Span<const Prompt> prompts,
                                             const RolloutOptions& options);

 private:
  // An answer under way, in the cache's sequence of the same number.
  struct Seat {
    Answer* answer = nullptr;  // null: free
    Philox key{0};
    int64_t limit = 0;  // tokens of the answer
  };

  Rollouts(const Network* network, const kernels::Compute* compute) : network_(network), compute_(compute) {}

  absl::Status Check(absl::Span<const Prompt> prompts, const RolloutOptions& options) const;
  // Draws a token for each taken seat from outputs_, and frees the seats whose answer ends.
  absl::Status Draw(const NetworkWeights& weights, const RolloutOptions& options);
  // Appends the last token of each taken seat.
  void Extend(const NetworkWeights& weights);

  const Network* const network_;
  const kernels::Compute* const compute_;
  int64_t columns_ = 0;
  // A sequence a seat, and one more for the prompt.
  Network::OwnedCache cache_;
  std::vector<Seat> seats_;
  std::vector<float> outputs_;  // [seats, hidden_size]: of each taken seat's last token
};

}  // namespace millrace::model
