#include "worker/reward_objective.h"

#include "absl/strings/str_format.h"
#include "text/batch_source.h"

namespace millrace::worker {

RewardObjective::RewardObjective(const ObjectiveSetting& setting)
    : context_(setting.models->context()),
      centering_(setting.context->phase().centering()),
      model_(setting.Model("")),
      training_(model_.network, setting.compute, /*for_training=*/true),
      evaluation_(model_.network, setting.compute, /*for_training=*/false) {}

absl::StatusOr<uint64_t> RewardObjective::Count(const v1::Microbatch& microbatch) const {
  MILLRACE_RETURN_IF_ERROR(BatchOf(microbatch, context_).status());
  if (microbatch.columns() > context_) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": answers of ",
                                                   microbatch.columns(), " tokens do not fit a context of ", context_));
  }
  return PairsOf(microbatch);
}

absl::StatusOr<double> RewardObjective::Loss(const LossPass& pass, Measured* measured) {
  MILLRACE_RETURN_IF_ERROR(Forward(pass.microbatch, pass.need, &evaluation_));
  return LossOf(pass.microbatch, /*scale=*/0, measured);
}

absl::StatusOr<double> RewardObjective::Gradients(const GradientPass& pass, Measured* measured) {
  MILLRACE_RETURN_IF_ERROR(Forward(pass.microbatch, pass.need, &training_));
  const double loss = LossOf(pass.microbatch, pass.scale, measured);
  const auto final = model_.Own(pass.final);
  MILLRACE_RETURN_IF_ERROR(passes_->Backward(d_values_, &model_.trainable, pass.gradients + model_.offset, final));
  return loss;
}

absl::Status RewardObjective::Forward(const v1::Microbatch& microbatch, model::GroupHook need,
                                      PassMemory<model::TokenValues>* memory) {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  MILLRACE_ASSIGN_OR_RETURN(passes_, memory->For(batch.rows, batch.columns));
  values_.resize(static_cast<size_t>(batch.rows * batch.columns));
  const auto own = model_.Own(need);
  MILLRACE_RETURN_IF_ERROR(passes_->Forward(model_.weights(),
                                            {batch.ids, batch.rows, batch.columns, batch.columns, batch.starts}, {},
                                            own, absl::MakeSpan(values_)));
  last_.clear();
  for (int64_t row = 0; row < batch.rows; ++row) last_.push_back(LastTokenOf(batch, row));
  return absl::OkStatus();
}

double RewardObjective::LossOf(const v1::Microbatch& microbatch, double scale, Measured* measured) {
  const auto* const margins = reinterpret_cast<const float*>(microbatch.row_values().data());
  std::vector<model::RewardPair> pairs(last_.size() / 2);
  for (size_t i = 0; i < pairs.size(); ++i) {
    pairs[i].chosen = values_[last_[2 * i]];
    pairs[i].rejected = values_[last_[2 * i + 1]];
    pairs[i].tie = margins[2 * i] == text::kTie;
    pairs[i].margin = pairs[i].tie ? 0 : margins[2 * i];
  }
  std::vector<double> d_chosen(pairs.size()), d_rejected(pairs.size());
  model::RewardStatistics statistics;
  const double loss =
      model::RewardLoss(pairs, centering_, scale, absl::MakeSpan(d_chosen), absl::MakeSpan(d_rejected), &statistics);
  d_values_.assign(values_.size(), 0);
  for (size_t i = 0; i < pairs.size(); ++i) {
    d_values_[last_[2 * i]] = static_cast<float>(d_chosen[i]);
    d_values_[last_[2 * i + 1]] = static_cast<float>(d_rejected[i]);
  }
  const auto comparisons = static_cast<double>(statistics.comparisons);
  measured->Add("accuracy", statistics.right, comparisons);
  measured->Add("margin", statistics.margin, comparisons);
  measured->Add("reward", statistics.rewards, static_cast<double>(2 * pairs.size()));
  for (size_t bin = 0; bin < statistics.calibration.size(); ++bin) {
    const model::RewardStatistics::Bin& of = statistics.calibration[bin];
    measured->Add("confidence", of.confidence, static_cast<double>(of.count));
    if (of.count > 0) {
      measured->Add(absl::StrFormat("accuracy_at_%.2f", 0.5 + static_cast<double>(bin) / 20), of.right,
                    static_cast<double>(of.count));
    }
  }
  return loss;
}

}  // namespace millrace::worker
