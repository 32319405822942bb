#include "worker/sampler.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::worker {
namespace {

// Answers that are extended together: bits do not depend on it.
constexpr int64_t kTogether = 64;

}  // namespace

std::vector<uint32_t> IdsOf(const std::string& bytes) {
  std::vector<uint32_t> ids(bytes.size() / sizeof(uint32_t));
  std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(uint32_t));
  return ids;
}

Sampler::Sampler(const ObjectiveSetting& setting, absl::string_view prefix)
    : model_(setting.Model(prefix)), compute_(setting.compute), context_(setting.models->context()) {
  const v1::RolloutSpec& spec = setting.context->phase().rollout();
  options_.sampling.temperature = spec.temperature();
  options_.max_tokens = spec.has_max_tokens() ? spec.max_tokens() : context_;
  options_.stop = {setting.context->end_of_turn()};
}

absl::Status Sampler::Check(const v1::Prompt& prompt) const {
  const size_t bytes = prompt.tokens().size(), tokens = bytes / sizeof(uint32_t);
  if (bytes % sizeof(uint32_t) != 0 || tokens == 0 || tokens >= static_cast<size_t>(context_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt ", prompt.index(), ": ", bytes, " bytes of tokens in a context of ", context_));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SampledAnswer>> Sampler::Sample(
    const google::protobuf::RepeatedPtrField<v1::Prompt>& prompts, uint32_t samples, const Philox& key) {
  std::vector<model::Prompt> asked;
  int64_t longest = 0;
  for (const v1::Prompt& prompt : prompts) {
    model::Prompt& next = asked.emplace_back();
    next.ids = IdsOf(prompt.tokens());
    longest = std::max(longest, static_cast<int64_t>(next.ids.size()));
    for (uint32_t sample = 0; sample < samples; ++sample) {
      next.keys.push_back(key.Derive(prompt.index()).Derive(sample));
    }
  }
  // A whole sequence fits the context: other models read its last token too. Memory for longer ones, which is kept,
  // changes no answer's limit: it is short of the context only where all fit with their max_tokens.
  const int64_t columns = std::min(longest + options_.max_tokens, context_) - 1;
  const int64_t together = std::min(static_cast<int64_t>(asked.size()) * samples, kTogether);
  if (!rollouts_.has_value() || columns > columns_ || together > together_) {
    columns_ = std::max(columns, columns_);
    together_ = std::max(together, together_);
    rollouts_.reset();
    MILLRACE_ASSIGN_OR_RETURN(model::Rollouts made,
                              model::Rollouts::Create(model_.network, compute_, together_, columns_));
    rollouts_.emplace(std::move(made));
  }
  MILLRACE_ASSIGN_OR_RETURN(std::vector<model::Answer> answers, rollouts_->Sample(model_.weights(), asked, options_));
  std::vector<SampledAnswer> sampled(answers.size());
  for (size_t i = 0; i < answers.size(); ++i) {
    SampledAnswer& answer = sampled[i];
    const auto of = static_cast<int>(i / samples);
    answer.prompt = &prompts[of];
    answer.ids = asked[static_cast<size_t>(of)].ids;
    answer.prompt_tokens = answer.ids.size();
    answer.ids.insert(answer.ids.end(), answers[i].ids.begin(), answers[i].ids.end());
    answer.log_probabilities = std::move(answers[i].log_probabilities);
    answer.ended = answers[i].stopped;
  }
  return sampled;
}

}  // namespace millrace::worker
