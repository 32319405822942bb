#include "worker/preference_objective.h"

#include "worker/padded_rows.h"

namespace millrace::worker {
namespace {

// Tokens [begin, end) of a row, index into the batch.
struct Span {
  int64_t begin = 0;
  int64_t end = 0;
};

// Where a row's answer lies: from the first token that counts to the last.
Span AnswerOf(const model::Batch& batch, int64_t row) {
  Span answer;
  for (int64_t column = 0; column < batch.columns; ++column) {
    if (!batch.Counts(row, column)) continue;
    if (answer.end == 0) answer.begin = row * batch.columns + column;
    answer.end = row * batch.columns + column + 1;
  }
  return answer;
}

}  // namespace

PreferenceObjective::PreferenceObjective(const ObjectiveSetting& setting)
    : name_(setting.context->phase().objective()),
      spec_(setting.context->phase().preference()),
      context_(setting.models->context()),
      training_(setting, "", /*for_training=*/true),
      evaluation_(setting, "", /*for_training=*/false) {
  if (setting.models->Find(kReference) != nullptr) reference_.emplace(setting, kReference, /*for_training=*/false);
}

absl::StatusOr<uint64_t> PreferenceObjective::Count(const v1::Microbatch& microbatch) const {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (AnswerOf(batch, row).end == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("microbatch ", microbatch.index(), ": row ", row, " has no answer"));
    }
  }
  if (name_ != "kto") return PairsOf(microbatch);
  if (microbatch.row_values().size() != size_t{microbatch.rows()} * sizeof(float)) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ",
                                                   microbatch.row_values().size(), " bytes of labels for ",
                                                   microbatch.rows(), " rows"));
  }
  return microbatch.rows();
}

absl::StatusOr<PreferenceObjective::Answers> PreferenceObjective::Scorer::Score(const model::Batch& batch,
                                                                                model::GroupHook need) {
  MILLRACE_ASSIGN_OR_RETURN(model::TokenScores* const scores, passes.For(batch.rows, batch.columns - 1));
  const auto own = model.Own(need);
  MILLRACE_RETURN_IF_ERROR(scores->Forward(model.weights(), batch, {}, own));
  std::vector<float> log_probabilities(static_cast<size_t>(scores->predictions()));
  scores->Score(/*temperature=*/1, absl::MakeSpan(log_probabilities), {});
  Answers answers;
  size_t next = 0;
  for (int64_t row = 0; row < batch.rows; ++row) {
    double sum = 0;
    int64_t tokens = 0;
    for (int64_t column = 0; column < batch.columns; ++column) {
      if (!batch.Counts(row, column)) continue;
      sum += static_cast<double>(log_probabilities[next++]);
      ++tokens;
    }
    answers.sums.push_back(sum);
    answers.tokens.push_back(tokens);
  }
  return answers;
}

// The point that KTO measures from: answers of the next row behind each row's prompt.
absl::StatusOr<double> PreferenceObjective::KtoReference(const model::Batch& batch, model::GroupHook need) {
  if (batch.rows < 2) return 0;
  std::vector<std::vector<uint32_t>> ids;
  std::vector<PaddedRows::Sequence> sequences;
  for (int64_t row = 0; row < batch.rows; ++row) {
    const Span own = AnswerOf(batch, row), next = AnswerOf(batch, (row + 1) % batch.rows);
    std::vector<uint32_t>& both = ids.emplace_back(batch.ids + row * batch.columns, batch.ids + own.begin);
    const size_t prompt = both.size();
    both.insert(both.end(), batch.ids + next.begin, batch.ids + next.end);
    // What does not fit is left out; a token always fits behind a prompt that had one.
    both.resize(std::min<size_t>(both.size(), size_t{context_} + 1));
    sequences.push_back({both, prompt});
  }
  const PaddedRows rows(sequences);
  const model::Batch mismatched = rows.batch();
  MILLRACE_ASSIGN_OR_RETURN(const Answers policy, evaluation_.Score(mismatched, need));
  MILLRACE_ASSIGN_OR_RETURN(const Answers reference, reference_->Score(mismatched, need));
  std::vector<double> differences;
  for (size_t i = 0; i < policy.sums.size(); ++i) differences.push_back(policy.sums[i] - reference.sums[i]);
  return model::KtoReferencePoint(differences);
}

double PreferenceObjective::LossOf(const v1::Microbatch& microbatch, const Answers& policy, const Answers& reference,
                                   double kto_reference, double scale, Measured* measured) {
  d_rows_.assign(policy.sums.size(), 0);
  tokens_ = policy.tokens;
  const auto* const values = reinterpret_cast<const float*>(microbatch.row_values().data());
  if (name_ == "kto") {
    std::vector<model::RatedResponse> responses(policy.sums.size());
    for (size_t i = 0; i < responses.size(); ++i) {
      responses[i] = {policy.sums[i], reference.sums[i], values[i] > 0};
    }
    const model::KtoOptions options = {spec_.beta(), spec_.desirable_weight(), spec_.undesirable_weight()};
    model::KtoStatistics statistics;
    const double loss = model::KtoLoss(responses, kto_reference, options, scale, absl::MakeSpan(d_rows_), &statistics);
    measured->Add("reward_desirable", statistics.desirable_reward, static_cast<double>(statistics.desirable));
    measured->Add("reward_undesirable", statistics.undesirable_reward, static_cast<double>(statistics.undesirable));
    measured->Add("kl", statistics.reference_point, static_cast<double>(responses.size()));
    return loss;
  }
  std::vector<model::PreferencePair> pairs(policy.sums.size() / 2);
  for (size_t i = 0; i < pairs.size(); ++i) {
    model::PreferencePair& pair = pairs[i];
    pair.chosen = policy.sums[2 * i];
    pair.rejected = policy.sums[2 * i + 1];
    pair.chosen_tokens = policy.tokens[2 * i];
    pair.rejected_tokens = policy.tokens[2 * i + 1];
    if (reference.sums.empty()) continue;
    pair.reference_chosen = reference.sums[2 * i];
    pair.reference_rejected = reference.sums[2 * i + 1];
  }
  std::vector<double> d_chosen(pairs.size()), d_rejected(pairs.size());
  model::PreferenceStatistics statistics;
  double loss = 0;
  if (name_ == "dpo") {
    loss = model::DpoLoss(pairs, spec_.beta(), spec_.label_smoothing(), scale, absl::MakeSpan(d_chosen),
                          absl::MakeSpan(d_rejected), &statistics);
  } else if (name_ == "ipo") {
    loss = model::IpoLoss(pairs, spec_.beta(), spec_.mean_log_probabilities(), scale, absl::MakeSpan(d_chosen),
                          absl::MakeSpan(d_rejected), &statistics);
  } else {
    loss =
        model::OrpoLoss(pairs, spec_.beta(), scale, absl::MakeSpan(d_chosen), absl::MakeSpan(d_rejected), &statistics);
    for (size_t i = 0; i < pairs.size(); ++i) {
      const auto tokens = static_cast<double>(pairs[i].chosen_tokens);
      loss -= pairs[i].chosen / tokens;
      d_chosen[i] -= scale / tokens;
    }
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    d_rows_[2 * i] = d_chosen[i];
    d_rows_[2 * i + 1] = d_rejected[i];
  }
  const auto count = static_cast<double>(statistics.pairs);
  measured->Add("accuracy", statistics.right, count);
  measured->Add("margin", statistics.chosen_reward - statistics.rejected_reward, count);
  measured->Add("reward_chosen", statistics.chosen_reward, count);
  measured->Add("reward_rejected", statistics.rejected_reward, count);
  return loss;
}

absl::StatusOr<double> PreferenceObjective::LossOfPass(const v1::Microbatch& microbatch, model::GroupHook need,
                                                       bool training, double scale, Measured* measured) {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  double kto_reference = 0;
  if (name_ == "kto") {
    MILLRACE_ASSIGN_OR_RETURN(kto_reference, KtoReference(batch, need));
  }
  MILLRACE_ASSIGN_OR_RETURN(const Answers policy, (training ? training_ : evaluation_).Score(batch, need));
  Answers reference;
  if (reference_.has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(reference, reference_->Score(batch, need));
  }
  return LossOf(microbatch, policy, reference, kto_reference, scale, measured);
}

absl::StatusOr<double> PreferenceObjective::Loss(const LossPass& pass, Measured* measured) {
  return LossOfPass(pass.microbatch, pass.need, /*training=*/false, /*scale=*/0, measured);
}

absl::StatusOr<double> PreferenceObjective::Gradients(const GradientPass& pass, Measured* measured) {
  MILLRACE_ASSIGN_OR_RETURN(const double loss,
                            LossOfPass(pass.microbatch, pass.need, /*training=*/true, pass.scale, measured));
  std::vector<float> derivatives;
  for (size_t row = 0; row < d_rows_.size(); ++row) {
    derivatives.insert(derivatives.end(), static_cast<size_t>(tokens_[row]), static_cast<float>(d_rows_[row]));
  }
  const ModelInUse& model = training_.model;
  const auto final = model.Own(pass.final);
  MILLRACE_ASSIGN_OR_RETURN(model::TokenScores* const scores,
                            training_.passes.For(pass.microbatch.rows(), pass.microbatch.columns() - 1));
  MILLRACE_RETURN_IF_ERROR(
      scores->Backward({derivatives, {}, 1}, &model.trainable, pass.gradients + model.offset, final));
  return loss;
}

}  // namespace millrace::worker
