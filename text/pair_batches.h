// Cuts a token store into the microbatches that an encoder is pre-trained and evaluated on (sentence_pairs.h).
//
// Training. An epoch takes the parts of the train text in the order of a permutation drawn for the epoch; how each is
// cut and what follows it is drawn for the epoch too. Evaluation takes the parts of the held-out text in their order,
// always cut alike. All of it is a function of (store fingerprint, seed, phase, step, microbatch). What is hidden is no
// part of a microbatch: workers draw it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/philox.h"
#include "text/batch_source.h"
#include "text/batches.h"
#include "text/sentence_pairs.h"
#include "text/token_store.h"

namespace millrace::text {

// Predictions are counted as sequences. Constant after Create: any thread.
class PairBatches : public BatchSource {
 public:
  // INVALID_ARGUMENT if a part of the store is too short, or the tokenizer lacks what sequences need.
  // BatchOptions.max_evaluation_tokens: ordinary tokens.
  static absl::StatusOr<std::unique_ptr<PairBatches>> Create(std::shared_ptr<const TokenStore> store,
                                                             const BatchOptions& options, bool pairs);

  uint32_t training_microbatches() const override { return options_.global_batch / options_.microbatch; }
  // Ordinary tokens of the parts that make the step's sequences.
  uint64_t training_predictions(uint64_t step) const override;
  TokenBatch Training(uint64_t step, uint32_t index) const override;
  uint64_t StepsOf(double epochs) const override;

  uint64_t evaluation_microbatches() const override;
  uint64_t evaluation_predictions() const override { return evaluated_; }
  uint64_t evaluation_bytes() const override { return 0; }
  TokenBatch Evaluation(uint64_t index) const override;

  uint32_t vocab_size() const override { return store_->vocab_size(); }
  const std::string& fingerprint() const override { return store_->fingerprint(); }

 private:
  PairBatches(std::shared_ptr<const TokenStore> store, const BatchOptions& options, bool pairs, EncoderTokens tokens,
              SentencePairs train, SentencePairs held_out);
  // The part that sequence `sequence` of training is made of.
  uint64_t PartOf(uint64_t sequence) const;

  const std::shared_ptr<const TokenStore> store_;
  const BatchOptions options_;
  const bool pairs_;
  const EncoderTokens tokens_;
  const SentencePairs train_, held_out_;
  const Philox key_;
  uint64_t evaluated_ = 0;  // parts of the held-out text
};

}  // namespace millrace::text
