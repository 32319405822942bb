#include "text/pair_batches.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::text {
namespace {

constexpr uint64_t kCuts = 0x43555453;        // "CUTS"
constexpr uint64_t kEvaluation = 0x4556414C;  // "EVAL"

}  // namespace

absl::StatusOr<std::unique_ptr<PairBatches>> PairBatches::Create(std::shared_ptr<const TokenStore> store,
                                                                 const BatchOptions& options, bool pairs) {
  if (options.microbatch == 0 || options.global_batch == 0 || options.global_batch % options.microbatch != 0) {
    return absl::InvalidArgumentError(absl::StrCat("global_batch ", options.global_batch, ", microbatch ",
                                                   options.microbatch,
                                                   ": both must be positive, and microbatch must divide global_batch"));
  }
  MILLRACE_ASSIGN_OR_RETURN(EncoderTokens tokens,
                            EncoderTokens::Create(SpecialTokensOf(store->tokenizer()), store->vocab_size()));
  const PairOptions of_pairs = {options.context, pairs, store->tokenizer().end_of_text()};
  const auto parts = [&](const TokenFile& file, absl::string_view what) {
    return SentencePairs::Create([&file](uint64_t index) { return file[index]; }, file.size(), of_pairs, tokens, what);
  };
  MILLRACE_ASSIGN_OR_RETURN(SentencePairs train, parts(store->train(), "train"));
  MILLRACE_ASSIGN_OR_RETURN(SentencePairs held_out, parts(store->held_out(), "held-out"));
  return std::unique_ptr<PairBatches>(
      new PairBatches(std::move(store), options, pairs, std::move(tokens), std::move(train), std::move(held_out)));
}

PairBatches::PairBatches(std::shared_ptr<const TokenStore> store, const BatchOptions& options, bool pairs,
                         EncoderTokens tokens, SentencePairs train, SentencePairs held_out)
    : store_(std::move(store)),
      options_(options),
      pairs_(pairs),
      tokens_(std::move(tokens)),
      train_(std::move(train)),
      held_out_(std::move(held_out)),
      key_(DataKey("pairs", store_->fingerprint(), options.seed, options.phase)) {
  uint64_t sum = 0;
  while (evaluated_ < held_out_.size()) {
    sum += held_out_.TokensOf(evaluated_);
    if (options_.max_evaluation_tokens > 0 && evaluated_ > 0 && sum > options_.max_evaluation_tokens) break;
    ++evaluated_;
  }
}

uint64_t PairBatches::PartOf(uint64_t sequence) const {
  return Permutation(train_.size(), key_.Derive(sequence / train_.size()))(sequence % train_.size());
}

uint64_t PairBatches::training_predictions(uint64_t step) const {
  uint64_t sum = 0;
  for (uint64_t row = 0; row < options_.global_batch; ++row) {
    sum += train_.TokensOf(PartOf(step * options_.global_batch + row));
  }
  return sum;
}

TokenBatch PairBatches::Training(uint64_t step, uint32_t index) const {
  std::vector<SentencePairs::Row> rows;
  for (uint32_t row = 0; row < options_.microbatch; ++row) {
    const uint64_t sequence = step * options_.global_batch + uint64_t{index} * options_.microbatch + row;
    rows.push_back(train_.Make(PartOf(sequence), key_.Derive(kCuts).Derive(sequence)));
  }
  return BatchOfRows(rows, pairs_, tokens_);
}

uint64_t PairBatches::StepsOf(double epochs) const {
  return static_cast<uint64_t>(std::ceil(epochs * static_cast<double>(train_.size()) / options_.global_batch));
}

uint64_t PairBatches::evaluation_microbatches() const {
  return (evaluated_ + options_.microbatch - 1) / options_.microbatch;
}

TokenBatch PairBatches::Evaluation(uint64_t index) const {
  std::vector<SentencePairs::Row> rows;
  const uint64_t first = index * options_.microbatch;
  for (uint64_t part = first; part < std::min(first + options_.microbatch, evaluated_); ++part) {
    rows.push_back(held_out_.Make(part, key_.Derive(kEvaluation).Derive(part)));
  }
  return BatchOfRows(rows, pairs_, tokens_);
}

}  // namespace millrace::text
