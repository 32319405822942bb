// Learns which tokens are hidden in sequences, and whether their second piece follows the first: masked_lm.
//
// A microbatch has whole sequences; here tokens are hidden in them: in training by the pass's key, which is of seed,
// phase, step and microbatch, in evaluations by the sequence alone (text/hidden_tokens.h).
#pragma once

#include <memory>
#include <vector>

#include "model/objectives/masked_lm.h"
#include "text/hidden_tokens.h"
#include "worker/objective.h"

namespace millrace::worker {

// Counts sequences.
class MaskedObjective : public Objective {
 public:
  // INVALID_ARGUMENT if the context lacks a special token that sequences need.
  static absl::StatusOr<std::unique_ptr<Objective>> Create(const ObjectiveSetting& setting);

  absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const override;
  absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) override;
  absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) override;

 private:
  MaskedObjective(const ObjectiveSetting& setting, text::EncoderTokens tokens);
  // Hides tokens of the microbatch's rows by the key, or by each row if it is null. The views are of this and of the
  // microbatch.
  absl::StatusOr<model::MaskedBatch> HideIn(const v1::Microbatch& microbatch, const Philox* key);
  void Measure(const model::MaskedAnswers& answers, Measured* measured) const;

  const uint32_t context_;
  const v1::MaskSpec mask_;
  const text::EncoderTokens tokens_;
  const ModelInUse model_;
  PassMemory<model::MaskedLm> training_, evaluation_;
  // Of the last microbatch.
  std::vector<uint32_t> shown_, types_, targets_;
  std::vector<int64_t> places_;
  std::vector<uint8_t> follows_;
  model::MaskedAnswers answers_;
};

}  // namespace millrace::worker
