// Learns to predict tokens: cross-entropy of the network's logits, and its gradients. What pre-training and supervised
// fine-tuning minimise; the latter scores some tokens only.
//
//   loss = sum over the targets that count of -log softmax(E h_t)[token t + 1]
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/objectives/token_scores.h"

namespace millrace::model {

// Holds the memory of its passes; one thread at a time.
class CausalLm {
 public:
  // For batches of up to `tokens` = rows * (columns - 1) in rows of up to `columns` - 1. Both outlive this.
  // RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<CausalLm> Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                         int64_t columns, bool for_training);

  // The loss in nats, summed over the targets that count, in f64 in their order. Their log-probabilities
  // [batch.predictions()] go to `log_probabilities` if it is not null.
  // INVALID_ARGUMENT as TokenScores::Forward's.
  absl::StatusOr<double> Loss(const NetworkWeights& weights, const Batch& batch, GroupHook need,
                              float* log_probabilities = nullptr);

  // The same, and adds `scale` times the loss's gradients by the trainable tensors to `gradients`, laid out as the
  // weights. `final` is called with each group once nothing more is added to it. Requires memory for training.
  absl::StatusOr<double> Gradients(const NetworkWeights& weights, const Batch& batch, const Noise& noise, float scale,
                                   GroupHook need, float* gradients, GroupHook final, Trainable trainable = nullptr);

 private:
  explicit CausalLm(TokenScores scores) : scores_(std::move(scores)) {}

  TokenScores scores_;
  std::vector<float> log_probabilities_;
  std::vector<float> derivatives_;
};

}  // namespace millrace::model
