// Cuts a token store into the microbatches of training and of evaluation.
//
// Training. An epoch cuts the train text into W windows of `context` tokens, one after another from an offset drawn
// for the epoch, and takes them in the order of a permutation drawn for the epoch. Sequence g = step * global_batch +
// row is window g mod W of epoch g / W. A sequence holds context + 1 tokens, the last one a target only.
//   W = max(1, floor(tokens / context) - 1), so that every offset below context leaves W whole windows.
// All of it is a function of (store fingerprint, seed, phase, step, microbatch).
//
// Evaluation. The held-out text is cut from its start into windows of `context` predictions without overlap; the
// first token alone is not predicted. The last, shorter window is a microbatch of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/philox.h"
#include "text/batch_source.h"
#include "text/token_store.h"

namespace millrace::text {

// A bijection of [0, size), drawn by `key`: a Feistel network over the next even power of two, walked until it falls
// inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
class Permutation {
 public:
  // Requires size >= 1.
  Permutation(uint64_t size, Philox key);
  // Requires index < size.
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t size_;
  int half_bits_;
  Philox key_;
};

// What everything drawn for a phase over such data is drawn with; `purpose` tells apart what it is drawn for.
Philox DataKey(absl::string_view purpose, const std::string& fingerprint, uint64_t seed, uint32_t phase);

struct BatchOptions {
  uint64_t seed = 1;
  uint32_t phase = 0;
  uint32_t context = 0;
  uint32_t global_batch = 0;
  uint32_t microbatch = 0;             // divides global_batch
  uint64_t max_evaluation_tokens = 0;  // predictions scored, from the start; 0: all
};

// Constant after Create: any thread.
class Batches : public BatchSource {
 public:
  // INVALID_ARGUMENT if a part of the store is too short for the context, saying what would be possible.
  static absl::StatusOr<Batches> Create(std::shared_ptr<const TokenStore> store, const BatchOptions& options);

  // Windows of an epoch.
  uint64_t windows() const { return windows_; }

  uint32_t training_microbatches() const override { return options_.global_batch / options_.microbatch; }
  uint64_t training_predictions(uint64_t /*step*/) const override {
    return uint64_t{options_.global_batch} * options_.context;
  }
  TokenBatch Training(uint64_t step, uint32_t index) const override;
  uint64_t StepsOf(double epochs) const override;

  uint64_t evaluation_microbatches() const override;
  uint64_t evaluation_predictions() const override { return evaluation_predictions_; }
  uint64_t evaluation_bytes() const override { return evaluation_bytes_; }
  TokenBatch Evaluation(uint64_t index) const override;

  uint32_t vocab_size() const override { return store_->vocab_size(); }
  const std::string& fingerprint() const override { return store_->fingerprint(); }
  const TokenStore& store() const { return *store_; }

 private:
  Batches(std::shared_ptr<const TokenStore> store, const BatchOptions& options);
  Philox EpochKey(uint64_t epoch) const;

  std::shared_ptr<const TokenStore> store_;
  BatchOptions options_;
  Philox key_;
  uint64_t windows_ = 0;
  uint64_t evaluation_predictions_ = 0;
  uint64_t evaluation_bytes_ = 0;
};

}  // namespace millrace::text
