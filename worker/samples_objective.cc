#include "worker/samples_objective.h"

#include <algorithm>
#include <utility>

#include "model/rollouts.h"
#include "worker/sampler.h"

namespace millrace::worker {

SamplesObjective::SamplesObjective(const ObjectiveSetting& setting)
    : model_(setting.Model("")),
      compute_(setting.compute),
      context_(setting.context),
      columns_(setting.models->context()),
      groups_(setting.models->groups()) {}

absl::StatusOr<uint64_t> SamplesObjective::Count(const v1::Microbatch& microbatch) const {
  if (context_->phase().evaluate().samples().max_tokens() == 0) {
    return absl::InvalidArgumentError("the phase's evaluate.samples does not say how much is written");
  }
  for (const v1::Prompt& prompt : microbatch.prompts()) {
    const size_t bytes = prompt.tokens().size(), tokens = bytes / sizeof(uint32_t);
    if (bytes % sizeof(uint32_t) != 0 || tokens == 0 || tokens >= static_cast<size_t>(columns_)) {
      return absl::InvalidArgumentError(absl::StrCat("evaluate.samples.prompts.", prompt.index(), ": ", bytes,
                                                     " bytes of tokens in a context of ", columns_));
    }
  }
  return static_cast<uint64_t>(microbatch.prompts_size());
}

absl::StatusOr<double> SamplesObjective::Loss(const LossPass&, Measured*) {
  return absl::InvalidArgumentError("what is written at evaluations has no loss");
}

absl::StatusOr<double> SamplesObjective::Gradients(const GradientPass&, Measured*) {
  return absl::InvalidArgumentError("nothing is learnt from what is written at evaluations");
}

absl::StatusOr<std::vector<v1::Experience>> SamplesObjective::Rollout(const RolloutPass& pass, Measured*) {
  MILLRACE_RETURN_IF_ERROR(AwaitGroups(pass.need, groups_));
  const v1::SamplesSpec& spec = context_->phase().evaluate().samples();
  model::RolloutOptions options;
  options.sampling.temperature = spec.temperature();
  options.sampling.top_p = spec.top_p();
  options.max_tokens = spec.max_tokens();
  options.stop.assign(context_->sample_ends().begin(), context_->sample_ends().end());
  std::vector<model::Prompt> prompts;
  int64_t longest = 0;
  for (const v1::Prompt& prompt : pass.microbatch.prompts()) {
    prompts.push_back({IdsOf(prompt.tokens()), {model::SamplingKey(spec.seed())}});
    longest = std::max(longest, static_cast<int64_t>(prompts.back().ids.size()));
  }
  // Of this call alone: evaluations are far between, and training wants the memory.
  MILLRACE_ASSIGN_OR_RETURN(model::Rollouts rollouts,
                            model::Rollouts::Create(model_.network, compute_, static_cast<int64_t>(prompts.size()),
                                                    std::min(longest + options.max_tokens - 1, columns_)));
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<model::Answer> answers,
                            rollouts.Sample(model_.weights(), prompts, options));
  std::vector<v1::Experience> experiences;
  for (size_t i = 0; i < answers.size(); ++i) {
    std::vector<uint32_t> ids = std::move(prompts[i].ids);
    v1::Experience& experience = experiences.emplace_back();
    experience.set_prompt_tokens(static_cast<uint32_t>(ids.size()));
    ids.insert(ids.end(), answers[i].ids.begin(), answers[i].ids.end());
    experience.set_tokens(ids.data(), ids.size() * sizeof(uint32_t));
  }
  return experiences;
}

}  // namespace millrace::worker
