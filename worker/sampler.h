// Lets one of the phase's models answer prompts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/philox.h"
#include "model/rollouts.h"
#include "worker/objective.h"
#include "worker/padded_rows.h"

namespace millrace::worker {

// An answer behind its prompt.
struct SampledAnswer {
  const v1::Prompt* prompt = nullptr;
  std::vector<uint32_t> ids;  // of prompt and answer
  size_t prompt_tokens = 0;
  std::vector<float> log_probabilities;  // [answer's tokens]
  bool ended = false;                    // by itself

  size_t tokens() const { return ids.size() - prompt_tokens; }
  // What it says, without the token that ends it.
  absl::Span<const uint32_t> said() const {
    return absl::MakeConstSpan(ids).subspan(prompt_tokens, tokens() - (ended ? 1 : 0));
  }
  PaddedRows::Sequence sequence() const { return {ids, prompt_tokens}; }
};

// The token ids of v1::Prompt, v1::Experience: little-endian.
std::vector<uint32_t> IdsOf(const std::string& bytes);

// One thread at a time.
class Sampler {
 public:
  // Answers as the phase's rollout says. Requires a model with logits.
  Sampler(const ObjectiveSetting& setting, absl::string_view prefix);

  // INVALID_ARGUMENT for a prompt that leaves no room for an answer.
  absl::Status Check(const v1::Prompt& prompt) const;

  // `samples` answers to each prompt, one prompt's after another: a function of the weights, the prompt, and
  // key.Derive(prompt's index).Derive(sample). A whole sequence fits the context.
  absl::StatusOr<std::vector<SampledAnswer>> Sample(const google::protobuf::RepeatedPtrField<v1::Prompt>& prompts,
                                                    uint32_t samples, const Philox& key);

 private:
  const ModelInUse model_;
  const kernels::Compute* const compute_;
  const int64_t context_;
  model::RolloutOptions options_;
  std::optional<model::Rollouts> rollouts_;
  int64_t together_ = 0, columns_ = 0;  // of rollouts_
};

}  // namespace millrace::worker
