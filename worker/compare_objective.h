// Samples pairs of answers for people to compare: two of one model, or one of each of two. Nothing is learnt.
#pragma once

#include <optional>

#include "common/philox.h"
#include "worker/objective.h"
#include "worker/sampler.h"

namespace millrace::worker {

// Counts prompts.
class CompareObjective : public Objective {
 public:
  explicit CompareObjective(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  // There is no loss: INVALID_ARGUMENT.
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;
  // Two answers to each prompt, that of the first model first.
  absl::StatusOr<std::vector<v1::Experience>> Rollout(const RolloutPass& pass, Measured* measured) override;

 private:
  const uint32_t groups_;
  const Philox key_;
  Sampler first_;
  std::optional<Sampler> other_;
};

}  // namespace millrace::worker
