#include "worker/compare_objective.h"

#include <utility>

namespace millrace::worker {
namespace {

constexpr uint64_t kComparePurpose = 0x434F4D50;  // "COMP"

}  // namespace

CompareObjective::CompareObjective(const ObjectiveSetting& setting)
    : groups_(setting.models->groups()),
      key_(Philox(setting.context->seed()).Derive(kComparePurpose + (uint64_t{setting.context->phase_index()} << 32))),
      first_(setting, "") {
  if (setting.models->Find(kOther) != nullptr) other_.emplace(setting, kOther);
}

absl::StatusOr<uint64_t> CompareObjective::Count(const v1::Microbatch& microbatch) const {
  for (const v1::Prompt& prompt : microbatch.prompts()) MILLRACE_RETURN_IF_ERROR(first_.Check(prompt));
  return static_cast<uint64_t>(microbatch.prompts_size());
}

absl::StatusOr<double> CompareObjective::Loss(const LossPass&, Measured*) {
  return absl::InvalidArgumentError("answers that people compare have no loss");
}

absl::StatusOr<double> CompareObjective::Gradients(const GradientPass&, Measured*) {
  return absl::InvalidArgumentError("nothing is learnt while answers are sampled for people to compare");
}

absl::StatusOr<std::vector<v1::Experience>> CompareObjective::Rollout(const RolloutPass& pass, Measured*) {
  MILLRACE_RETURN_IF_ERROR(AwaitGroups(pass.need, groups_));
  const auto& prompts = pass.microbatch.prompts();
  std::vector<SampledAnswer> answers;
  if (!other_.has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(answers, first_.Sample(prompts, /*samples=*/2, key_));
  } else {
    MILLRACE_ASSIGN_OR_RETURN(std::vector<SampledAnswer> first, first_.Sample(prompts, /*samples=*/1, key_));
    MILLRACE_ASSIGN_OR_RETURN(std::vector<SampledAnswer> other, other_->Sample(prompts, /*samples=*/1, key_.Derive(1)));
    for (size_t i = 0; i < first.size(); ++i) {
      answers.push_back(std::move(first[i]));
      answers.push_back(std::move(other[i]));
    }
  }
  std::vector<v1::Experience> experiences;
  for (const SampledAnswer& answer : answers) {
    v1::Experience& experience = experiences.emplace_back();
    experience.set_tokens(answer.ids.data(), answer.ids.size() * sizeof(uint32_t));
    experience.set_prompt_tokens(static_cast<uint32_t>(answer.prompt_tokens));
    experience.mutable_log_probabilities()->Add(answer.log_probabilities.begin(), answer.log_probabilities.end());
  }
  return experiences;
}

}  // namespace millrace::worker
