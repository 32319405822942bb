// Scores texts with an encoder, which sees what is before and behind a hidden token.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/language_model.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// result[i] = log p(tokens[i] | the other tokens), in nats: each is hidden in turn, alone, between [CLS] and [SEP].
// Their sum is the pseudo-log-likelihood (Salazar et al. 2020, "Masked language model scoring"). In a text longer than
// the context each sees the `context` tokens around it. INVALID_ARGUMENT for a model that is no encoder, an empty text
// and ids that are not in the vocabulary.
absl::StatusOr<std::vector<float>> PseudoLogProbabilities(const LanguageModel& model,
                                                          absl::Span<const uint32_t> tokens);

// How well a model tells what is hidden in a text, and which pieces follow each other.
struct MaskedScores {
  double masked_loss = 0;             // nats a hidden token
  double masked_accuracy = 0;         // share of the hidden tokens that are the likeliest
  double next_sentence_accuracy = 0;  // share of the sequences; 0 without pairs
  uint64_t sequences = 0;
  uint64_t hidden = 0;  // tokens
};
// Of the sequences that training makes of such a text, hidden as evaluations do: a function of text and model.
// `tokens`: documents, each as LanguageModel::EncodeDocument gives it. INVALID_ARGUMENT for a model that is no encoder
// and a text that is too short.
absl::StatusOr<MaskedScores> ScoreHidden(const LanguageModel& model, absl::Span<const uint32_t> tokens,
                                         const v1::MaskSpec& mask);

}  // namespace millrace::model
