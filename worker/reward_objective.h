// Learns a reward from comparisons: the value of an answer's last token is what the answer is worth.
#pragma once

#include <vector>

#include "model/objectives/reward.h"
#include "model/objectives/token_values.h"
#include "worker/objective.h"

namespace millrace::worker {

// Counts pairs. Measures accuracy, margin, confidence, and accuracy_at_X: the accuracy among pairs of whose order the
// model is sure to X … X + 0.05.
class RewardObjective : public Objective {
 public:
  explicit RewardObjective(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;

 private:
  // Fills values_ and last_.
  absl::Status Forward(const v1::Microbatch& microbatch, model::GroupHook need, PassMemory<model::TokenValues>* memory);
  // Of the last Forward; fills d_values_.
  double LossOf(const v1::Microbatch& microbatch, double scale, Measured* measured);

  const uint32_t context_;
  const double centering_;
  const ModelInUse model_;
  PassMemory<model::TokenValues> training_, evaluation_;
  model::TokenValues* passes_ = nullptr;  // of the last Forward
  std::vector<float> values_, d_values_;  // [rows, columns]
  std::vector<size_t> last_;              // [rows]: where the last token's value lies
};

}  // namespace millrace::worker
