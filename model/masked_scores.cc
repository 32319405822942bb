#include "model/masked_scores.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/objectives/masked_lm.h"
#include "text/sentence_pairs.h"

namespace millrace::model {
namespace {

// Tokens that go through the model together.
constexpr int64_t kScoredTokens = 1024;
constexpr uint64_t kCuts = 0x43555453;  // "CUTS"

absl::StatusOr<MaskedLm> NewMaskedLm(const LanguageModel& model, int64_t tokens, int64_t columns) {
  return MaskedLm::Create(&model.network(), &model.compute(), tokens, columns, /*for_training=*/false);
}

}  // namespace

absl::StatusOr<std::vector<float>> PseudoLogProbabilities(const LanguageModel& model,
                                                          absl::Span<const uint32_t> tokens) {
  if (tokens.empty()) return absl::InvalidArgumentError("an empty text: nothing is predicted");
  const auto all = static_cast<int64_t>(tokens.size());
  const int64_t window = std::min(all, model.context()), columns = window + 2;
  const int64_t together = std::max<int64_t>(1, kScoredTokens / columns);
  MILLRACE_ASSIGN_OR_RETURN(MaskedLm masked_lm, NewMaskedLm(model, together * columns, columns));
  const text::EncoderTokens& special = *model.encoder_tokens();
  std::vector<float> result;
  for (int64_t first = 0; first < all; first += together) {
    const int64_t rows = std::min(together, all - first);
    std::vector<uint32_t> ids;
    std::vector<int64_t> places;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = first + row;
      const int64_t begin = std::clamp<int64_t>(at - window / 2, 0, all - window);
      ids.push_back(special.begin());
      ids.insert(ids.end(), tokens.begin() + begin, tokens.begin() + begin + window);
      ids.push_back(special.separator());
      places.push_back(row * columns + 1 + at - begin);
      ids[static_cast<size_t>(places.back())] = special.mask();
    }
    const auto targets = tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(rows));
    MaskedAnswers answers;
    MILLRACE_RETURN_IF_ERROR(
        masked_lm
            .Loss(model.weights(), {{ids.data(), rows, columns, columns}, places, targets, {}}, &IgnoreGroup, &answers)
            .status());
    for (const float loss : answers.losses) result.push_back(-loss);
  }
  return result;
}

absl::StatusOr<MaskedScores> ScoreHidden(const LanguageModel& model, absl::Span<const uint32_t> tokens,
                                         const v1::MaskSpec& mask) {
  const int64_t context = model.network().spec().context();
  const int64_t together = std::max<int64_t>(1, kScoredTokens / context);
  MILLRACE_ASSIGN_OR_RETURN(MaskedLm masked_lm, NewMaskedLm(model, together * context, context));
  const text::EncoderTokens& special = *model.encoder_tokens();
  MILLRACE_ASSIGN_OR_RETURN(
      const text::SentencePairs pairs,
      text::SentencePairs::Create(
          [tokens](uint64_t index) { return tokens[index]; }, tokens.size(),
          {static_cast<uint32_t>(context), mask.next_sentence(), model.tokenizer().end_of_text()}, special, "given"));
  const Philox key = Philox(kCuts);
  MaskedScores scores;
  double loss = 0, right = 0, pairs_right = 0;
  for (uint64_t first = 0; first < pairs.size(); first += static_cast<uint64_t>(together)) {
    std::vector<text::SentencePairs::Row> rows;
    for (uint64_t i = first; i < std::min(first + static_cast<uint64_t>(together), pairs.size()); ++i) {
      rows.push_back(pairs.Make(i, key.Derive(i)));
    }
    text::TokenBatch batch = text::BatchOfRows(rows, mask.next_sentence(), special);
    std::vector<uint32_t> types(batch.tokens.size(), 0), targets;
    std::vector<int64_t> places;
    std::vector<uint8_t> follows;
    for (size_t row = 0; row < rows.size(); ++row) {
      const size_t begin = row * batch.columns;
      const std::vector<uint32_t>& ids = rows[row].ids;
      const text::HiddenTokens hidden = text::Hide(mask, special, text::EvaluationKey(ids), 0, ids);
      const std::vector<uint32_t> pieces = text::PiecesOf(special, ids);
      std::copy(hidden.shown.begin(), hidden.shown.end(), batch.tokens.begin() + static_cast<ptrdiff_t>(begin));
      std::copy(pieces.begin(), pieces.end(), types.begin() + static_cast<ptrdiff_t>(begin));
      for (const uint32_t column : hidden.columns) places.push_back(static_cast<int64_t>(begin + column));
      targets.insert(targets.end(), hidden.targets.begin(), hidden.targets.end());
      if (mask.next_sentence()) follows.push_back(rows[row].follows ? 1 : 0);
    }
    MaskedAnswers answers;
    const TokenMatrix matrix = {batch.tokens.data(), batch.rows,          batch.columns,
                                batch.columns,       batch.starts.data(), types.data()};
    MILLRACE_RETURN_IF_ERROR(
        masked_lm.Loss(model.weights(), {matrix, places, targets, follows}, &IgnoreGroup, &answers).status());
    for (const float of_token : answers.losses) loss += static_cast<double>(of_token);
    for (const uint8_t of_token : answers.right) right += of_token;
    for (const uint8_t of_row : answers.next_sentence_right) pairs_right += of_row;
    scores.hidden += answers.losses.size();
    scores.sequences += rows.size();
  }
  scores.masked_loss = loss / static_cast<double>(scores.hidden);
  scores.masked_accuracy = right / static_cast<double>(scores.hidden);
  scores.next_sentence_accuracy = pairs_right / static_cast<double>(scores.sequences);
  return scores;
}

}  // namespace millrace::model
