// Learns what hidden tokens are, and whether one piece of text follows another: what encoders are pre-trained with
// (Devlin et al. 2019, "BERT", section 3.1).
//
//   loss of a sequence = mean over its hidden tokens of -log softmax(logits of the token)[what it was]
//                        + -log softmax(logits of the sequence)[0 if the second piece follows the first, else 1]
//
// with the logits of head.h; the second term only where it is asked. Sequences count alike, however many of their
// tokens are hidden, so that what a step's loss is a mean over is known before anything is hidden; Devlin et al. take
// the mean over all hidden tokens of a batch, which is the same for sequences of one length.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/arena.h"
#include "model/families/network.h"

namespace millrace::model {

// Sequences as they are shown, one a row, and what is to be told of them. Views.
struct MaskedBatch {
  TokenMatrix tokens;
  // [hidden], ascending: indices into [rows, columns]; and what is hidden there.
  absl::Span<const int64_t> places;
  absl::Span<const uint32_t> targets;
  // [rows]: whether the second piece follows the first one, 1 or 0. Empty: it is not asked.
  absl::Span<const uint8_t> follows;
};

// What the network says, by hidden token and by row; the latter are empty where `follows` is.
struct MaskedAnswers {
  std::vector<float> losses;   // [hidden]: -log p of what was there, in nats
  std::vector<uint8_t> right;  // [hidden]: 1 if it is the likeliest token
  std::vector<float> next_sentence_losses;
  std::vector<uint8_t> next_sentence_right;
};

// Holds the memory of its passes; one thread at a time.
class MaskedLm {
 public:
  // For batches of up to `tokens` tokens in rows of up to `columns`. Both outlive this. INVALID_ARGUMENT for a network
  // that is no encoder; RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<MaskedLm> Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                         int64_t columns, bool for_training);

  // The loss in nats, summed over the sequences in f64 in their order; `answers` may be null.
  // INVALID_ARGUMENT for ids beyond the vocabulary, places that cannot be, batches that do not fit and those of which
  // nothing is to be told.
  absl::StatusOr<double> Loss(const NetworkWeights& weights, const MaskedBatch& batch, GroupHook need,
                              MaskedAnswers* answers);

  // The same, and adds `scale` times the loss's gradients by the trainable tensors to `gradients`, laid out as the
  // weights. `final` is called with each group once nothing more is added to it. Requires memory for training.
  absl::StatusOr<double> Gradients(const NetworkWeights& weights, const MaskedBatch& batch, const Noise& noise,
                                   float scale, GroupHook need, float* gradients, GroupHook final, Trainable trainable,
                                   MaskedAnswers* answers);

 private:
  MaskedLm(const Network* network, const kernels::Compute* compute) : network_(network), compute_(compute) {}

  absl::Status Check(const MaskedBatch& batch);
  absl::Status Forward(const NetworkWeights& weights, const MaskedBatch& batch, const Noise& noise, GroupHook need);
  // Answers of hidden tokens [begin, begin + count), whose logits are made; with `d_losses` these become gradients.
  void Answer(const MaskedBatch& batch, int64_t begin, int64_t count, const float* d_losses, MaskedAnswers* answers);
  void AnswerNextSentence(const MaskedBatch& batch, const float* d_losses, MaskedAnswers* answers);
  double SumOf(const MaskedBatch& batch, const MaskedAnswers& answers) const;
  const float* At(int tensor) const { return TensorAt(network_->tensors(), weights_, tensor); }
  Linear LinearOf(int64_t outputs) const { return {network_->hidden_size(), outputs, false, network_->precision()}; }

  const Network* const network_;
  const kernels::Compute* const compute_;
  Network::OwnedMemory memory_;
  int64_t piece_ = 0;  // rows of logits at a time; even
  Arena arena_;
  float* logits_ = nullptr;  // [piece, vocab_size]
  // Of hidden tokens, [tokens, hidden_size]: the outputs, GELU's input, the norm's, and what logits are made of.
  float* gathered_ = nullptr;
  float* transformed_ = nullptr;
  float* activated_ = nullptr;
  float* normed_ = nullptr;
  float* mean_ = nullptr;        // [tokens]
  float* rstd_ = nullptr;        // [tokens]
  float* d_normed_ = nullptr;    // [tokens, hidden_size]
  float* d_gathered_ = nullptr;  // [tokens, hidden_size]
  // Of sequences, at most as many as tokens, [rows, hidden_size].
  float* first_ = nullptr;   // the first tokens' outputs
  float* pooled_ = nullptr;  // tanh of the pooler's
  float* d_pooled_ = nullptr;
  float* d_first_ = nullptr;
  float* pair_logits_ = nullptr;  // [rows, 2]
  // Of the last Forward.
  const float* weights_ = nullptr;
  const float* outputs_ = nullptr;
  std::vector<int64_t> hidden_of_row_;  // how many
};

}  // namespace millrace::model
