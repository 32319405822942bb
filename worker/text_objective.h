// Learns to predict tokens: causal_lm and sft.
#pragma once

#include "model/objectives/causal_lm.h"
#include "worker/objective.h"

namespace millrace::worker {

// Counts tokens.
class TextObjective : public Objective {
 public:
  explicit TextObjective(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;

 private:
  const uint32_t context_;
  const ModelInUse model_;
  PassMemory<model::CausalLm> training_, evaluation_;
};

}  // namespace millrace::worker
