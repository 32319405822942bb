#include "worker/masked_objective.h"

#include <algorithm>
#include <utility>

namespace millrace::worker {
namespace {

constexpr uint64_t kHidePurpose = 0x48494445;  // "HIDE"

// How long a row's sequence is, behind which there is only padding.
size_t LengthOf(const model::Batch& batch, int64_t row) {
  return LastTokenOf(batch, row) - static_cast<size_t>(row * batch.columns) + 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Objective>> MaskedObjective::Create(const ObjectiveSetting& setting) {
  const auto& special = setting.context->special_tokens();
  MILLRACE_ASSIGN_OR_RETURN(text::EncoderTokens tokens, text::EncoderTokens::Create({special.begin(), special.end()},
                                                                                    setting.context->vocab_size()));
  return std::unique_ptr<Objective>(new MaskedObjective(setting, std::move(tokens)));
}

MaskedObjective::MaskedObjective(const ObjectiveSetting& setting, text::EncoderTokens tokens)
    : context_(setting.models->context()),
      mask_(setting.context->phase().mask()),
      tokens_(std::move(tokens)),
      model_(setting.Model("")),
      training_(model_.network, setting.compute, /*for_training=*/true),
      evaluation_(model_.network, setting.compute, /*for_training=*/false) {}

absl::StatusOr<uint64_t> MaskedObjective::Count(const v1::Microbatch& microbatch) const {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", what));
  };
  if (microbatch.columns() > context_) {
    return wrong(absl::StrCat("sequences of ", microbatch.columns(), " tokens do not fit a context of ", context_));
  }
  const size_t wanted = mask_.next_sentence() ? size_t{microbatch.rows()} * sizeof(float) : 0;
  if (microbatch.row_values().size() != wanted) {
    return wrong(absl::StrCat(microbatch.row_values().size(), " bytes of what follows where ", microbatch.rows(),
                              " rows have ", wanted));
  }
  for (int64_t row = 0; row < batch.rows; ++row) {
    const uint32_t* const ids = batch.ids + row * batch.columns;
    const size_t length = LengthOf(batch, row);
    if (ids[0] != tokens_.begin()) return wrong(absl::StrCat("row ", row, " does not begin with [CLS]"));
    if (!std::any_of(ids, ids + length, [this](uint32_t id) { return tokens_.IsOrdinary(id); })) {
      return wrong(absl::StrCat("row ", row, " has no token that could be hidden"));
    }
  }
  return batch.rows;
}

absl::StatusOr<model::MaskedBatch> MaskedObjective::HideIn(const v1::Microbatch& microbatch, const Philox* key) {
  MILLRACE_ASSIGN_OR_RETURN(const model::Batch batch, BatchOf(microbatch, context_));
  shown_.assign(batch.ids, batch.ids + batch.rows * batch.columns);
  types_.assign(shown_.size(), 0);
  places_.clear();
  targets_.clear();
  follows_.clear();
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t begin = row * batch.columns;
    const auto ids = absl::MakeConstSpan(batch.ids + begin, LengthOf(batch, row));
    const text::HiddenTokens hidden = key != nullptr ? text::Hide(mask_, tokens_, *key, static_cast<uint64_t>(row), ids)
                                                     : text::Hide(mask_, tokens_, text::EvaluationKey(ids), 0, ids);
    std::copy(hidden.shown.begin(), hidden.shown.end(), shown_.begin() + begin);
    const std::vector<uint32_t> pieces = text::PiecesOf(tokens_, ids);
    std::copy(pieces.begin(), pieces.end(), types_.begin() + begin);
    for (const uint32_t column : hidden.columns) places_.push_back(begin + column);
    targets_.insert(targets_.end(), hidden.targets.begin(), hidden.targets.end());
    if (!mask_.next_sentence()) continue;
    follows_.push_back(reinterpret_cast<const float*>(microbatch.row_values().data())[row] > 0 ? 1 : 0);
  }
  return model::MaskedBatch{{shown_.data(), batch.rows, batch.columns, batch.columns, batch.starts, types_.data()},
                            places_,
                            targets_,
                            follows_};
}

void MaskedObjective::Measure(const model::MaskedAnswers& answers, Measured* measured) const {
  double loss = 0, right = 0, pairs_right = 0;
  for (const float of_token : answers.losses) loss += static_cast<double>(of_token);
  for (const uint8_t of_token : answers.right) right += of_token;
  for (const uint8_t of_row : answers.next_sentence_right) pairs_right += of_row;
  measured->Add("masked_loss", loss, static_cast<double>(answers.losses.size()));
  measured->Add("masked_accuracy", right, static_cast<double>(answers.losses.size()));
  if (!mask_.next_sentence()) return;
  measured->Add("next_sentence_accuracy", pairs_right, static_cast<double>(answers.next_sentence_right.size()));
}

absl::StatusOr<double> MaskedObjective::Loss(const LossPass& pass, Measured* measured) {
  MILLRACE_ASSIGN_OR_RETURN(const model::MaskedBatch batch, HideIn(pass.microbatch, nullptr));
  // Memory for training does, if it is there.
  PassMemory<model::MaskedLm>& memory =
      training_.Holds(batch.tokens.rows, batch.tokens.columns) ? training_ : evaluation_;
  MILLRACE_ASSIGN_OR_RETURN(model::MaskedLm* const passes, memory.For(batch.tokens.rows, batch.tokens.columns));
  const auto need = model_.Own(pass.need);
  MILLRACE_ASSIGN_OR_RETURN(const double loss, passes->Loss(model_.weights(), batch, need, &answers_));
  Measure(answers_, measured);
  return loss;
}

absl::StatusOr<double> MaskedObjective::Gradients(const GradientPass& pass, Measured* measured) {
  const Philox key = pass.noise.key->Derive(kHidePurpose);
  MILLRACE_ASSIGN_OR_RETURN(const model::MaskedBatch batch, HideIn(pass.microbatch, &key));
  MILLRACE_ASSIGN_OR_RETURN(model::MaskedLm* const passes, training_.For(batch.tokens.rows, batch.tokens.columns));
  const auto need = model_.Own(pass.need);
  const auto final = model_.Own(pass.final);
  MILLRACE_ASSIGN_OR_RETURN(const double loss,
                            passes->Gradients(model_.weights(), batch, pass.noise, static_cast<float>(pass.scale), need,
                                              pass.gradients + model_.offset, final, &model_.trainable, &answers_));
  Measure(answers_, measured);
  return loss;
}

}  // namespace millrace::worker
