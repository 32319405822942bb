// Learns from preferences without a reward model, by log-probabilities of whole answers: dpo, ipo and orpo from pairs,
// kto from answers that were called good or not.
//
// ORPO's first term is the mean negative log-probability of the chosen answer's tokens (Hong et al. 2024, equations 2
// and 3). Nothing is dropped out.
#pragma once

#include <string>
#include <vector>

#include "model/objectives/preference.h"
#include "model/objectives/token_scores.h"
#include "worker/objective.h"

namespace millrace::worker {

// Counts pairs, or answers. Measures what the policy prefers: accuracy, margin and reward_chosen, reward_rejected (kto:
// reward_desirable, reward_undesirable), by the implicit reward β log π / π_reference.
class PreferenceObjective : public Objective {
 public:
  explicit PreferenceObjective(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;

 private:
  // Log-probabilities summed over each row's answer.
  struct Answers {
    std::vector<double> sums;
    std::vector<int64_t> tokens;
  };
  // One of the two models with its passes.
  struct Scorer {
    Scorer(const ObjectiveSetting& setting, absl::string_view prefix, bool for_training)
        : model(setting.Model(prefix)), passes(model.network, setting.compute, for_training) {}
    absl::StatusOr<Answers> Score(const model::Batch& batch, model::GroupHook need);

    ModelInUse model;
    PassMemory<model::TokenScores> passes;
  };

  absl::StatusOr<double> KtoReference(const model::Batch& batch, model::GroupHook need);
  // The loss of the microbatch from the answers of both models; fills d_rows_.
  double LossOf(const v1::Microbatch& microbatch, const Answers& policy, const Answers& reference, double kto_reference,
                double scale, Measured* measured);
  absl::StatusOr<double> LossOfPass(const v1::Microbatch& microbatch, model::GroupHook need, bool training,
                                    double scale, Measured* measured);

  const std::string name_;
  const v1::PreferenceSpec spec_;
  const uint32_t context_;
  Scorer training_, evaluation_;
  std::optional<Scorer> reference_;  // orpo: none
  std::vector<double> d_rows_;       // derivatives by each row's sum
  std::vector<int64_t> tokens_;      // of each row's answer
};

}  // namespace millrace::worker
