// Cuts an example store into the microbatches of training and of evaluation.
//
// Training. An epoch takes the examples in the order of a permutation drawn for the epoch. Examples of sft are packed
// into rows of at most context + 1 tokens: each goes into the fullest row of the epoch that has room for it, among
// equals the one begun first, or begins a row (best fit: Johnson et al., "Worst-case performance bounds for simple
// one-dimensional packing algorithms", 1974). Without packing, and for pairs and labelled, each begins one. Step s
// takes global_batch rows, or pairs of rows, from where the step before ended, across epochs.
//
// A row's sequences are told apart by TokenBatch::starts. The first token of a sequence is never scored. Rows are as
// long as the longest of their microbatch; what is missing is a sequence of id 0, not scored, of its own.
//
// Replay (sft). A share r of the rows are windows of a text: of rows 0 … g, those of all steps in order, it has
// floor((g + 1) r), so that it is spread evenly. The text's rows are those of Batches, one after another, all scored.
//
// All of it is a function of (fingerprint, seed, phase, step, microbatch).
//
// Evaluation takes the held-out examples in their order, up to the one that reaches max_evaluation_tokens scored
// tokens, packed likewise; the text of a replay is no part of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/philox.h"
#include "text/batch_source.h"
#include "text/batches.h"
#include "text/example_store.h"
#include "text/token_store.h"

namespace millrace::text {

struct ExampleBatchOptions {
  uint64_t seed = 1;
  uint32_t phase = 0;
  uint32_t context = 0;
  uint32_t global_batch = 0;           // rows; pairs: pairs
  uint32_t microbatch = 0;             // divides global_batch
  bool packing = true;                 // sft
  uint64_t max_evaluation_tokens = 0;  // 0: all
  double replay = 0;                   // sft: share of rows in [0, 1) that come from a text
};

// Any thread.
class ExampleBatches : public BatchSource {
 public:
  // INVALID_ARGUMENT for options out of bounds, examples longer than context + 1 or a store of prompts (PromptOrder).
  // `replay` is needed if options.replay > 0, and must be of the same tokenizer.
  static absl::StatusOr<std::unique_ptr<ExampleBatches>> Create(std::shared_ptr<const ExampleStore> store,
                                                                const ExampleBatchOptions& options,
                                                                std::shared_ptr<const TokenStore> replay = nullptr);

  uint32_t training_microbatches() const override { return options_.global_batch / options_.microbatch; }
  uint64_t training_predictions(uint64_t step) const override;
  TokenBatch Training(uint64_t step, uint32_t index) const override;
  // Of the examples; a replayed text is not counted.
  uint64_t StepsOf(double epochs) const override;

  uint64_t evaluation_microbatches() const override;
  uint64_t evaluation_predictions() const override { return evaluation_predictions_; }
  uint64_t evaluation_bytes() const override { return evaluation_bytes_; }
  TokenBatch Evaluation(uint64_t index) const override;

  uint32_t vocab_size() const override { return store_->vocab_size(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  const ExampleStore& store() const { return *store_; }

 private:
  // Examples by their indices in a part of the store, row after row.
  using Rows = std::vector<std::vector<uint32_t>>;
  // What a row of a step is.
  struct Row {
    std::vector<uint32_t> examples;
    std::optional<uint64_t> window;  // of the replayed text, instead
  };

  ExampleBatches(std::shared_ptr<const ExampleStore> store, const ExampleBatchOptions& options);
  Rows Pack(const ExampleFile& part, const std::vector<uint32_t>& order) const;
  std::shared_ptr<const Rows> RowsOfEpoch(uint64_t epoch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Rows of all epochs before `epoch`.
  uint64_t RowsBefore(uint64_t epoch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The epoch of a row of the examples, counted through all epochs.
  uint64_t EpochOf(uint64_t row) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Rows of the replayed text among the first `rows`.
  uint64_t Replayed(uint64_t rows) const;
  // Rows [first, first + count) of all steps' rows in order.
  std::vector<Row> RowsAt(uint64_t first, uint64_t count) const;
  TokenBatch Lay(const ExampleFile& part, const std::vector<Row>& rows) const;

  const std::shared_ptr<const ExampleStore> store_;
  const ExampleBatchOptions options_;
  std::unique_ptr<const Batches> text_;  // a step a row
  std::string fingerprint_;
  Philox key_;
  Rows evaluation_;
  uint64_t evaluation_predictions_ = 0;
  uint64_t evaluation_bytes_ = 0;

  // A step may straddle epochs, and steps are asked for in order: the last two epochs are kept.
  mutable absl::Mutex mutex_;
  struct Epoch {
    uint64_t number = 0;
    std::shared_ptr<const Rows> rows;
  };
  mutable Epoch kept_[2] ABSL_GUARDED_BY(mutex_);
  mutable std::vector<uint64_t> rows_before_ ABSL_GUARDED_BY(mutex_) = {0};  // by epoch
};

// The prompts of a store, in the order in which a phase takes them. Constant after Create: any thread.
class PromptOrder {
 public:
  struct Prompt {
    std::vector<uint32_t> ids;
    std::vector<Message> messages;
    std::string answer;   // empty if there is none
    uint64_t record = 0;  // its index in its part of the store
  };

  // INVALID_ARGUMENT if the store is of another kind.
  static absl::StatusOr<PromptOrder> Create(std::shared_ptr<const ExampleStore> store, uint64_t seed, uint32_t phase);

  uint64_t training_prompts() const { return store_->train().size(); }
  uint64_t evaluation_prompts() const { return store_->held_out().size(); }
  // With n training prompts, prompt `index` mod n, in the order of a permutation drawn for the epoch, of epoch
  // `index` / n.
  Prompt Training(uint64_t index) const;
  // In the store's order. Requires index < evaluation_prompts().
  Prompt Evaluation(uint64_t index) const;

 private:
  PromptOrder(std::shared_ptr<const ExampleStore> store, Philox key) : store_(std::move(store)), key_(key) {}

  std::shared_ptr<const ExampleStore> store_;
  Philox key_;
};

}  // namespace millrace::text
