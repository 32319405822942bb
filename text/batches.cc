#include "text/batches.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"

namespace millrace::text {
namespace {

constexpr int kRounds = 8;

uint64_t Word64(const std::array<uint32_t, 4>& words) { return words[0] | uint64_t{words[1]} << 32; }

}  // namespace

Permutation::Permutation(uint64_t size, Philox key) : size_(size), key_(key) {
  const int bits = size > 1 ? std::bit_width(size - 1) : 1;
  half_bits_ = (bits + 1) / 2;
}

uint64_t Permutation::operator()(uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = index >> half_bits_, right = index & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = left ^ (Word64(key_(round, right)) & mask);
      left = right;
      right = mixed;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

Philox DataKey(absl::string_view purpose, const std::string& fingerprint, uint64_t seed, uint32_t phase) {
  return Philox(std::stoull(
      Sha256Hex(absl::StrCat("millrace ", purpose, "\n", fingerprint, "\n", seed, "\n", phase)).substr(0, 16), nullptr,
      16));
}

Batches::Batches(std::shared_ptr<const TokenStore> store, const BatchOptions& options)
    : store_(std::move(store)),
      options_(options),
      key_(DataKey("batches", store_->fingerprint(), options.seed, options.phase)) {}

absl::StatusOr<Batches> Batches::Create(std::shared_ptr<const TokenStore> store, const BatchOptions& options) {
  if (options.context == 0 || options.microbatch == 0 || options.global_batch == 0 ||
      options.global_batch % options.microbatch != 0) {
    return absl::InvalidArgumentError(absl::StrCat("context ", options.context, ", global_batch ", options.global_batch,
                                                   ", microbatch ", options.microbatch,
                                                   ": all must be positive, and microbatch must divide global_batch"));
  }
  const uint64_t tokens = store->train().size();
  if (tokens < uint64_t{options.context} + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the train text has ", tokens, " tokens, too few for one sequence of model.context ", options.context, " + 1; ",
        tokens < 3 ? "add text" : absl::StrCat("a context of at most ", tokens - 1, " is possible")));
  }
  if (store->held_out().size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("the held-out text has ", store->held_out().size(),
                     " tokens; at least 2 are needed to predict one: raise data.held_out or add text"));
  }
  Batches batches(std::move(store), options);
  batches.windows_ = std::max<uint64_t>(tokens / options.context, 2) - 1;
  const TokenFile& held_out = batches.store_->held_out();
  batches.evaluation_predictions_ = held_out.size() - 1;
  if (options.max_evaluation_tokens > 0) {
    batches.evaluation_predictions_ = std::min(batches.evaluation_predictions_, options.max_evaluation_tokens);
  }
  for (uint64_t i = 1; i <= batches.evaluation_predictions_; ++i)
    batches.evaluation_bytes_ += batches.store_->BytesOf(held_out[i]);
  return batches;
}

Philox Batches::EpochKey(uint64_t epoch) const { return key_.Derive(epoch); }

TokenBatch Batches::Training(uint64_t step, uint32_t index) const {
  const TokenFile& train = store_->train();
  TokenBatch batch;
  batch.rows = options_.microbatch;
  batch.columns = options_.context + 1;
  batch.tokens.reserve(uint64_t{batch.rows} * batch.columns);
  for (uint32_t row = 0; row < batch.rows; ++row) {
    const uint64_t sequence = step * options_.global_batch + uint64_t{index} * options_.microbatch + row;
    const uint64_t epoch = sequence / windows_;
    const Philox key = EpochKey(epoch);
    const uint64_t last_offset =
        std::min<uint64_t>(train.size() - 1 - windows_ * options_.context, options_.context - 1);
    const uint64_t offset = Word64(key(~uint64_t{0}, 0)) % (last_offset + 1);
    const uint64_t window = Permutation(windows_, key)(sequence % windows_);
    const uint64_t begin = offset + window * options_.context;
    for (uint32_t column = 0; column < batch.columns; ++column) {
      const uint32_t id = train[begin + column];
      batch.tokens.push_back(id);
      if (column > 0) batch.bytes += store_->BytesOf(id);
    }
  }
  return batch;
}

uint64_t Batches::StepsOf(double epochs) const {
  return static_cast<uint64_t>(std::ceil(epochs * static_cast<double>(windows_) / options_.global_batch));
}

uint64_t Batches::evaluation_microbatches() const {
  const uint64_t windows = evaluation_predictions_ / options_.context;
  return (windows + options_.microbatch - 1) / options_.microbatch + (evaluation_predictions_ % options_.context != 0);
}

TokenBatch Batches::Evaluation(uint64_t index) const {
  const TokenFile& held_out = store_->held_out();
  const uint64_t windows = evaluation_predictions_ / options_.context;
  const uint64_t first = index * options_.microbatch;
  TokenBatch batch;
  uint64_t begin = first * options_.context;
  if (first < windows) {
    batch.rows = static_cast<uint32_t>(std::min<uint64_t>(options_.microbatch, windows - first));
    batch.columns = options_.context + 1;
  } else {
    begin = windows * options_.context;
    batch.rows = 1;
    batch.columns = static_cast<uint32_t>(evaluation_predictions_ - begin + 1);
  }
  batch.tokens.reserve(uint64_t{batch.rows} * batch.columns);
  for (uint32_t row = 0; row < batch.rows; ++row, begin += options_.context) {
    for (uint32_t column = 0; column < batch.columns; ++column) {
      const uint32_t id = held_out[begin + column];
      batch.tokens.push_back(id);
      if (column > 0) batch.bytes += store_->BytesOf(id);
    }
  }
  return batch;
}

}  // namespace millrace::text
