// Continues the prompts of evaluate.samples, for people to see what the model writes. Nothing is learnt.
#pragma once

#include "model/families/network.h"
#include "worker/objective.h"

namespace millrace::worker {

// Counts prompts.
class SamplesObjective : public Objective {
 public:
  // Requires a language model as the one that is trained.
  explicit SamplesObjective(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  // There is no loss: INVALID_ARGUMENT.
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;
  // What follows each prompt: a function of the weights, the prompt and the phase's evaluate.samples, and the text that
  // LanguageModel::Generate gives for the same seed, up to where the context is full, with the token that ended it.
  absl::StatusOr<std::vector<v1::Experience>> Rollout(const RolloutPass& pass, Measured* measured) override;

 private:
  const ModelInUse model_;
  const kernels::Compute* const compute_;
  const v1::PhaseContext* const context_;
  const int64_t columns_;  // of the model's context
  const uint32_t groups_;
};

}  // namespace millrace::worker
