// Scores tokens: log-probabilities of those that count and entropies of their distributions, and the gradients of
// whatever is computed of them. What objectives over single tokens have in common.
//
//   log p = log softmax(E h_t / temperature)[token t + 1],   h: the network's outputs, E: output embedding
//
// Logits are made for some rows at a time and not kept, but made again for the gradients. The chains of fused
// multiply-adds go on from piece to piece, so that the piece's size changes no bit. Tokens that do not count cost no
// logits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/arena.h"
#include "model/families/network.h"

namespace millrace::model {

// Sequences with their targets: row r predicts ids[r][c + 1] from what its sequence holds up to column c, for
// c < columns - 1. A token that begins a sequence is no target.
struct Batch {
  const uint32_t* ids = nullptr;  // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;       // the last token of a row is a target only
  int64_t first_scored = 0;  // predictions from columns before this one do not count
  // [rows, columns]: the column at which the token's sequence begins in its row; null: each row is one sequence.
  const uint32_t* starts = nullptr;
  // [rows, columns]: whether the token is a target that counts; null: all that can be one are.
  const uint8_t* scored = nullptr;

  bool Counts(int64_t row, int64_t column) const {
    const int64_t at = row * columns + column;
    return column > first_scored && (starts == nullptr || starts[at] != column) &&
           (scored == nullptr || scored[at] != 0);
  }
  // Targets that count.
  int64_t predictions() const;
};

// Holds the memory of its passes; one thread at a time.
class TokenScores {
 public:
  // For batches of up to `tokens` = rows * (columns - 1) in rows of up to `columns` - 1. Both outlive this.
  // INVALID_ARGUMENT for a network with a scalar head and for an encoder; RESOURCE_EXHAUSTED if there is not so much
  // memory.
  static absl::StatusOr<TokenScores> Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                            int64_t columns, bool for_training);

  // Runs the network. `batch` and `noise`, and what they point to, and `weights` stay as they are until the last call
  // for them. INVALID_ARGUMENT for ids beyond the vocabulary, for batches that do not fit or in which nothing counts,
  // and for a token that is scored where nothing predicts it.
  absl::Status Forward(const NetworkWeights& weights, const Batch& batch, const Noise& noise, GroupHook need);
  // Of the batch.
  int64_t predictions() const { return static_cast<int64_t>(targets_.size()); }

  // After Forward: of the targets that count, row after row; `entropies` may be empty: not wanted.
  // Requires spans for predictions() numbers and temperature > 0.
  void Score(float temperature, absl::Span<float> log_probabilities, absl::Span<float> entropies);

  // Derivatives of a loss by what Score gives, [predictions].
  struct Derivatives {
    absl::Span<const float> of_log_probabilities;
    absl::Span<const float> of_entropies;  // empty: zeros
    float temperature = 1;
  };
  // After Forward, in memory for training: adds the loss's gradients to `gradients`, laid out as the weights, and calls
  // `final` as Network::Backward does. Log-probabilities, the bits of Score's, go to `log_probabilities` unless it is
  // empty.
  absl::Status Backward(const Derivatives& derivatives, Trainable trainable, float* gradients, GroupHook final,
                        absl::Span<float> log_probabilities = {});

 private:
  TokenScores(const Network* network, const kernels::Compute* compute) : network_(network), compute_(compute) {}

  absl::Status TakeTargets(const Batch& batch);
  TokenMatrix Inputs() const;
  // The outputs before targets [begin, begin + count), one after another: where they lie, or gathered.
  const float* OutputsOf(int64_t begin, int64_t count);
  bool Adjacent(int64_t begin, int64_t count) const;
  // logits_ of targets [begin, begin + count) from their outputs.
  void MakeLogits(const float* outputs, int64_t count);
  Linear Projection() const;
  const float* Embedding() const;

  const Network* const network_;
  const kernels::Compute* const compute_;
  Network::OwnedMemory memory_;
  int64_t piece_ = 0;  // rows of logits at a time; even
  Arena arena_;
  float* logits_ = nullptr;      // [piece, vocab_size]
  float* losses_ = nullptr;      // [piece]
  float* gathered_ = nullptr;    // [piece, hidden_size]
  float* d_gathered_ = nullptr;  // [piece, hidden_size]
  // Of the last Forward.
  NetworkWeights weights_ = nullptr;
  Batch batch_;
  Noise noise_;
  const float* outputs_ = nullptr;  // [rows * (columns - 1), hidden_size]
  std::vector<int64_t> places_;     // of the targets that count: the output that predicts each
  std::vector<uint32_t> targets_;   // their ids
};

}  // namespace millrace::model
