#include "text/example_batches.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/status.h"

namespace millrace::text {
ExampleBatches::ExampleBatches(std::shared_ptr<const ExampleStore> store, const ExampleBatchOptions& options)
    : store_(std::move(store)), options_(options), fingerprint_(store_->fingerprint()), key_(0) {}

absl::StatusOr<std::unique_ptr<ExampleBatches>> ExampleBatches::Create(std::shared_ptr<const ExampleStore> store,
                                                                       const ExampleBatchOptions& options,
                                                                       std::shared_ptr<const TokenStore> replay) {
  if (options.context == 0 || options.microbatch == 0 || options.global_batch == 0 ||
      options.global_batch % options.microbatch != 0 || !(options.replay >= 0 && options.replay < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("context ", options.context, ", global_batch ", options.global_batch, ", microbatch ",
                     options.microbatch, ", replay ", options.replay,
                     ": all must be positive, microbatch must divide global_batch, and replay must lie in [0, 1)"));
  }
  const ExampleKind kind = store->kind();
  if (kind == ExampleKind::kPrompts) return absl::InvalidArgumentError("prompts have nothing to predict");
  if (store->train().size() == 0 || store->held_out().size() == 0 ||
      store->train().size() > std::numeric_limits<uint32_t>::max() ||
      store->held_out().size() > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("the store has ", store->train().size(),
                                                   " examples to train on and ", store->held_out().size(),
                                                   " held out; both must be between 1 and 2^32 - 1"));
  }
  const uint32_t longest = std::max(store->train().longest(), store->held_out().longest());
  if (longest > uint64_t{options.context} + 1) {
    return absl::InvalidArgumentError(absl::StrCat("the examples were prepared for a longer context: one has ", longest,
                                                   " tokens, which model.context ", options.context,
                                                   " + 1 does not hold"));
  }
  auto batches = std::unique_ptr<ExampleBatches>(new ExampleBatches(std::move(store), options));
  if (options.replay > 0) {
    if (kind != ExampleKind::kSft) return absl::InvalidArgumentError("replay is for sft alone");
    if (replay == nullptr) return absl::InvalidArgumentError("replay needs the text that is replayed");
    if (replay->tokenizer().ToJson() != batches->store_->tokenizer().ToJson())
      return absl::InvalidArgumentError("the text to replay was encoded with another tokenizer than the examples");
    BatchOptions rows;
    rows.seed = options.seed;
    rows.phase = options.phase;
    rows.context = options.context;
    rows.global_batch = rows.microbatch = 1;
    MILLRACE_ASSIGN_OR_RETURN(Batches text, Batches::Create(replay, rows));
    batches->text_ = std::make_unique<const Batches>(std::move(text));
    batches->fingerprint_ = Sha256Hex(
        absl::StrCat(batches->fingerprint_, "\n", replay->fingerprint(), "\n", absl::StrFormat("%a", options.replay)));
  }
  batches->key_ = DataKey("examples", batches->fingerprint_, options.seed, options.phase);

  const ExampleFile& held_out = batches->store_->held_out();
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < held_out.size(); ++i) {
    const ExampleRecord record = held_out[i];
    order.push_back(i);
    batches->evaluation_predictions_ += record.scored;
    for (uint64_t token = record.first; token < record.first + record.length + record.second; ++token) {
      if (held_out.is_scored(token)) batches->evaluation_bytes_ += batches->store_->BytesOf(held_out.id(token));
    }
    if (options.max_evaluation_tokens > 0 && batches->evaluation_predictions_ >= options.max_evaluation_tokens) break;
  }
  batches->evaluation_ = batches->Pack(held_out, order);
  return batches;
}

ExampleBatches::Rows ExampleBatches::Pack(const ExampleFile& part, const std::vector<uint32_t>& order) const {
  Rows rows;
  if (part.kind() != ExampleKind::kSft || !options_.packing) {
    for (const uint32_t example : order) rows.push_back({example});
    return rows;
  }
  // Rows that have room, by how much, then by number.
  std::set<std::pair<uint32_t, uint64_t>> open;
  for (const uint32_t example : order) {
    const uint32_t length = part[example].length;
    const auto fit = open.lower_bound({length, 0});
    uint64_t row = rows.size();
    uint32_t room = options_.context + 1;
    if (fit != open.end()) {
      std::tie(room, row) = *fit;
      open.erase(fit);
    } else {
      rows.emplace_back();
    }
    rows[row].push_back(example);
    // A sequence of one token predicts nothing, so that less room than two tokens is none.
    if (room - length >= 2) open.insert({room - length, row});
  }
  return rows;
}

std::shared_ptr<const ExampleBatches::Rows> ExampleBatches::RowsOfEpoch(uint64_t epoch) const {
  for (const Epoch& kept : kept_) {
    if (kept.rows != nullptr && kept.number == epoch) return kept.rows;
  }
  const Permutation permutation(store_->train().size(), key_.Derive(epoch));
  std::vector<uint32_t> order(store_->train().size());
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(permutation(i));
  kept_[1] = std::move(kept_[0]);
  kept_[0] = {epoch, std::make_shared<const Rows>(Pack(store_->train(), order))};
  return kept_[0].rows;
}

uint64_t ExampleBatches::RowsBefore(uint64_t epoch) const {
  if (store_->kind() != ExampleKind::kSft || !options_.packing) return epoch * store_->train().size();
  while (rows_before_.size() <= epoch) {
    rows_before_.push_back(rows_before_.back() + RowsOfEpoch(rows_before_.size() - 1)->size());
  }
  return rows_before_[epoch];
}

uint64_t ExampleBatches::EpochOf(uint64_t row) const {
  if (store_->kind() != ExampleKind::kSft || !options_.packing) return row / store_->train().size();
  while (rows_before_.back() <= row) RowsBefore(rows_before_.size());
  const auto after = std::upper_bound(rows_before_.begin(), rows_before_.end(), row);
  return static_cast<uint64_t>(after - rows_before_.begin()) - 1;
}

uint64_t ExampleBatches::Replayed(uint64_t rows) const {
  return static_cast<uint64_t>(std::floor(static_cast<double>(rows) * options_.replay));
}

std::vector<ExampleBatches::Row> ExampleBatches::RowsAt(uint64_t first, uint64_t count) const {
  std::vector<Row> found;
  absl::MutexLock lock(&mutex_);
  for (uint64_t row = first; row < first + count; ++row) {
    const uint64_t replayed = Replayed(row);
    if (Replayed(row + 1) > replayed) {
      found.push_back({.examples = {}, .window = replayed});
      continue;
    }
    const uint64_t own = row - replayed;
    const uint64_t epoch = EpochOf(own);
    found.push_back({.examples = (*RowsOfEpoch(epoch))[own - RowsBefore(epoch)], .window = std::nullopt});
  }
  return found;
}

TokenBatch ExampleBatches::Lay(const ExampleFile& part, const std::vector<Row>& rows) const {
  const bool pairs = part.kind() == ExampleKind::kPairs;
  // Sequences as runs of the part's tokens, row after row.
  struct Run {
    uint64_t first;
    uint32_t length;
  };
  std::vector<std::vector<Run>> runs;
  std::map<size_t, TokenBatch> windows;  // by row, for those that are of the text
  TokenBatch batch;
  for (const Row& row : rows) {
    std::vector<Run> run;
    uint32_t columns = 0;
    if (row.window) {
      columns = windows.emplace(runs.size(), text_->Training(*row.window, 0)).first->second.columns;
    }
    for (const uint32_t example : row.examples) {
      const ExampleRecord record = part[example];
      run.push_back({record.first, record.length});
      columns += record.length;
      if (part.kind() != ExampleKind::kSft)
        batch.row_values.insert(batch.row_values.end(), pairs ? 2 : 1, record.value);
      if (!pairs) continue;
      runs.push_back(std::move(run));
      run = {{record.first + record.length, record.second}};
      columns = std::max(columns, record.second);
    }
    runs.push_back(std::move(run));
    batch.columns = std::max(batch.columns, columns);
  }
  batch.rows = static_cast<uint32_t>(runs.size());
  const size_t size = size_t{batch.rows} * batch.columns;
  batch.tokens.resize(size);
  batch.scored.resize(size);
  batch.starts.resize(size);
  for (size_t row = 0; row < runs.size(); ++row) {
    const size_t begin = row * batch.columns;
    uint32_t column = 0;
    if (const auto window = windows.find(row); window != windows.end()) {
      std::copy(window->second.tokens.begin(), window->second.tokens.end(),
                batch.tokens.begin() + static_cast<ptrdiff_t>(begin));
      column = window->second.columns;
      std::fill_n(batch.scored.begin() + static_cast<ptrdiff_t>(begin) + 1, column - 1, 1);
      batch.bytes += window->second.bytes;
    }
    for (const Run& run : runs[row]) {
      const uint32_t start = column;
      for (uint64_t token = run.first; token < run.first + run.length; ++token, ++column) {
        const uint32_t id = part.id(token);
        batch.tokens[begin + column] = id;
        batch.scored[begin + column] = part.is_scored(token);
        batch.starts[begin + column] = start;
        if (part.is_scored(token)) batch.bytes += store_->BytesOf(id);
      }
    }
    const uint32_t padding = column;
    for (; column < batch.columns; ++column) batch.starts[begin + column] = padding;
  }
  return batch;
}

uint64_t ExampleBatches::training_predictions(uint64_t step) const {
  uint64_t predictions = 0;
  for (const Row& row : RowsAt(step * options_.global_batch, options_.global_batch)) {
    if (row.window) predictions += options_.context;
    for (const uint32_t example : row.examples) predictions += store_->train()[example].scored;
  }
  return predictions;
}

TokenBatch ExampleBatches::Training(uint64_t step, uint32_t index) const {
  return Lay(store_->train(),
             RowsAt(step * options_.global_batch + uint64_t{index} * options_.microbatch, options_.microbatch));
}

uint64_t ExampleBatches::StepsOf(double epochs) const {
  const double whole = std::floor(epochs);
  uint64_t rows = 0;
  {
    absl::MutexLock lock(&mutex_);
    const auto before = static_cast<uint64_t>(whole);
    rows = RowsBefore(before);
    if (epochs > whole)
      rows += static_cast<uint64_t>(std::ceil((epochs - whole) * static_cast<double>(RowsBefore(before + 1) - rows)));
  }
  const auto own = [this](uint64_t steps) {
    const uint64_t all = steps * options_.global_batch;
    return all - Replayed(all);
  };
  auto steps = static_cast<uint64_t>(static_cast<double>(rows) / (1 - options_.replay) / options_.global_batch);
  while (steps > 0 && own(steps - 1) >= rows) --steps;
  while (own(steps) < rows) ++steps;
  return steps;
}

uint64_t ExampleBatches::evaluation_microbatches() const {
  return (evaluation_.size() + options_.microbatch - 1) / options_.microbatch;
}

TokenBatch ExampleBatches::Evaluation(uint64_t index) const {
  std::vector<Row> rows;
  const size_t first = index * options_.microbatch;
  for (size_t i = first; i < std::min<size_t>(first + options_.microbatch, evaluation_.size()); ++i)
    rows.push_back({.examples = evaluation_[i], .window = std::nullopt});
  return Lay(store_->held_out(), rows);
}

absl::StatusOr<PromptOrder> PromptOrder::Create(std::shared_ptr<const ExampleStore> store, uint64_t seed,
                                                uint32_t phase) {
  if (store->kind() != ExampleKind::kPrompts)
    return absl::InvalidArgumentError(absl::StrCat("the store holds ", NameOf(store->kind()), ", not prompts"));
  if (store->train().size() == 0) return absl::InvalidArgumentError("the store holds no prompts to train on");
  const Philox key = DataKey("prompts", store->fingerprint(), seed, phase);
  return PromptOrder(std::move(store), key);
}

namespace {

PromptOrder::Prompt PromptAt(const ExampleFile& part, uint64_t index) {
  const ExampleRecord record = part[index];
  PromptOrder::Prompt prompt;
  prompt.record = index;
  // It was checked when the file was opened.
  if (absl::StatusOr<PromptDetails> details = ParsePromptDetails(record.details); details.ok()) {
    prompt.answer = std::move(details->answer);
    prompt.messages = std::move(details->messages);
  }
  for (uint32_t i = 0; i < record.length; ++i) prompt.ids.push_back(part.id(record.first + i));
  return prompt;
}

}  // namespace

PromptOrder::Prompt PromptOrder::Training(uint64_t index) const {
  const uint64_t size = store_->train().size();
  return PromptAt(store_->train(), Permutation(size, key_.Derive(index / size))(index % size));
}

PromptOrder::Prompt PromptOrder::Evaluation(uint64_t index) const { return PromptAt(store_->held_out(), index); }

}  // namespace millrace::text
