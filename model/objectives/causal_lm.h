// Learns to predict the next token: cross-entropy of the decoder's logits, and its gradients.
//
//   loss = sum over predictions of -log softmax(E h_t)[token t + 1],   h: the decoder's outputs, E: output embedding
//
// Logits are made for some rows at a time and not kept: only their gradients' products are. The chains of fused
// multiply-adds go on from piece to piece, so that the piece's size changes no bit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/families/decoder.h"

namespace millrace::model {

// Sequences with their targets: row r predicts ids[r][c + 1] from ids[r][0 … c], for c < columns - 1.
struct Batch {
  const uint32_t* ids = nullptr;  // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;       // the last token of a row is a target only
  int64_t first_scored = 0;  // predictions from columns before this one do not count

  int64_t predictions() const { return rows * (columns - 1 - first_scored); }
};

// Holds the memory of its passes; one thread at a time.
class CausalLm {
 public:
  // For batches of up to `tokens` = rows * (columns - 1) in rows of up to `columns` - 1. Both outlive this.
  // RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<CausalLm> Create(const Decoder* decoder, const kernels::Compute* compute, int64_t tokens,
                                         int64_t columns, bool for_training);

  // The loss in nats, summed over the predictions that count, in f64 in their order. Log-probabilities of all
  // predictions [rows, columns - 1] go to `log_probabilities` if it is not null.
  // INVALID_ARGUMENT for ids beyond the vocabulary and batches that do not fit.
  absl::StatusOr<double> Loss(const float* weights, const Batch& batch, GroupHook need,
                              float* log_probabilities = nullptr);

  // The same for a batch that counts whole, and adds `scale` times the loss's gradients to `gradients`, laid out as
  // the weights. `final` is called with each group once nothing more is added to it. Requires memory for training.
  absl::StatusOr<double> Gradients(const float* weights, const Batch& batch, const Noise& noise, float scale,
                                   GroupHook need, float* gradients, GroupHook final);

 private:
  CausalLm(const Decoder* decoder, const kernels::Compute* compute) : decoder_(decoder), compute_(compute) {}

  absl::Status Check(const Batch& batch) const;
  // targets_: of the predictions [begin, begin + count), row after row.
  void TakeTargets(const Batch& batch, int64_t begin, int64_t count);

  const Decoder* const decoder_;
  const kernels::Compute* const compute_;
  Decoder::OwnedMemory memory_;
  int64_t piece_ = 0;  // rows of logits at a time; even
  Arena arena_;
  float* logits_ = nullptr;  // [piece, vocab_size]
  float* losses_ = nullptr;  // [piece]
  std::vector<uint32_t> targets_;
};

}  // namespace millrace::model
