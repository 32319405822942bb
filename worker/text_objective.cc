#include "worker/text_objective.h"

namespace millrace::worker {

TextObjective::TextObjective(const ObjectiveSetting& setting)
    : context_(setting.models->context()),
      model_(setting.Model("")),
      training_(model_.network, setting.compute, /*for_training=*/true),
      evaluation_(model_.network, setting.compute, /*for_training=*/false) {}

absl::StatusOr<uint64_t> TextObjective::Count(const v1::Microbatch& microbatch) const {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  const auto predictions = static_cast<uint64_t>(batch.predictions());
  // Rows of padding alone are fine where the batch says what counts; else one that predicts nothing is refused.
  if (batch.scored == nullptr && predictions == 0) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), " predicts nothing"));
  }
  return predictions;
}

absl::StatusOr<double> TextObjective::Loss(const LossPass& pass, Measured*) {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(pass.microbatch, context_));
  // Memory for training does, if it is there.
  PassMemory<model::CausalLm>& memory = training_.Holds(batch.rows, batch.columns - 1) ? training_ : evaluation_;
  MILLRACE_ASSIGN_OR_RETURN(model::CausalLm* const passes, memory.For(batch.rows, batch.columns - 1));
  const auto need = model_.Own(pass.need);
  return passes->Loss(model_.weights(), batch, need);
}

absl::StatusOr<double> TextObjective::Gradients(const GradientPass& pass, Measured*) {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(pass.microbatch, context_));
  MILLRACE_ASSIGN_OR_RETURN(model::CausalLm* const passes, training_.For(batch.rows, batch.columns - 1));
  const auto need = model_.Own(pass.need);
  const auto final = model_.Own(pass.final);
  return passes->Gradients(model_.weights(), batch, pass.noise, static_cast<float>(pass.scale), need,
                           pass.gradients + model_.offset, final, &model_.trainable);
}

}  // namespace millrace::worker
