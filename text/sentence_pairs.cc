#include "text/sentence_pairs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::text {
namespace {

// Other parts that are looked at for one that is long enough.
constexpr uint64_t kTries = 16;

// Of the draws that make a sequence.
enum Draw : uint64_t { kCut, kFollows, kFirstTry };

uint64_t Below(const Philox& key, uint64_t draw, int half, uint64_t bound) {
  const std::array<uint32_t, 4> words = key(1, draw);
  return (words[static_cast<size_t>(2 * half)] | uint64_t{words[static_cast<size_t>(2 * half + 1)]} << 32) % bound;
}

}  // namespace

absl::StatusOr<SentencePairs> SentencePairs::Create(TokenAt at, uint64_t count, const PairOptions& options,
                                                    const EncoderTokens& tokens, absl::string_view what) {
  const uint32_t least = options.pairs ? 5 : 3;
  if (options.context < least) {
    return absl::InvalidArgumentError(absl::StrCat("a context of ", options.context, " tokens holds no sequence of ",
                                                   options.pairs ? "two pieces" : "a piece", "; at least ", least));
  }
  SentencePairs made(std::move(at), options, tokens);
  uint64_t begin = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (options.separator != made.at_(i)) continue;
    made.AddDocument(begin, i);
    begin = i + 1;
  }
  made.AddDocument(begin, count);
  const uint64_t wanted = options.pairs ? 2 : 1;
  if (made.size() < wanted) {
    return absl::InvalidArgumentError(absl::StrCat("the ", what, " text has ", count, " tokens, of which ", made.size(),
                                                   " of the ", wanted, wanted == 1 ? " sequence" : " sequences",
                                                   " can be made that are wanted: add text",
                                                   options.pairs ? " or lower model.context" : ""));
  }
  return made;
}

void SentencePairs::AddDocument(uint64_t begin, uint64_t end) {
  const uint64_t most = options_.context - (options_.pairs ? 3 : 2);
  for (; begin < end; begin += most) {
    const auto count = static_cast<uint32_t>(std::min(most, end - begin));
    if (count >= (options_.pairs ? 2 : 1)) parts_.push_back({begin, count});
  }
}

void SentencePairs::Append(uint64_t begin, uint64_t count, std::vector<uint32_t>* ids) const {
  for (uint64_t i = begin; i < begin + count; ++i) ids->push_back(at_(i));
}

SentencePairs::Row SentencePairs::Make(uint64_t index, const Philox& key) const {
  const Part& part = parts_[index];
  Row row;
  row.ids.reserve(options_.context);
  row.ids.push_back(tokens_.begin());
  if (!options_.pairs) {
    Append(part.begin, part.count, &row.ids);
    row.ids.push_back(tokens_.separator());
    return row;
  }
  const uint64_t quarter = std::max<uint64_t>(1, part.count / 4);
  const uint64_t cut = quarter + Below(key, kCut, 0, part.count - 2 * quarter + 1);
  Part second = {part.begin + cut, part.count - static_cast<uint32_t>(cut)};
  row.follows = Below(key, kFollows, 0, 2) == 0;
  if (!row.follows) {
    Part best;  // the longest that was seen
    for (uint64_t i = 0; i < kTries && best.count < second.count; ++i) {
      // One of the others.
      uint64_t other = Below(key, kFirstTry + i, 0, size() - 1);
      if (other >= index) ++other;
      const Part& seen = parts_[other];
      if (seen.count <= best.count) continue;
      best = seen;
      if (seen.count >= second.count) {
        best = {seen.begin + Below(key, kFirstTry + i, 1, seen.count - second.count + 1), second.count};
      }
    }
    second = best;
  }
  Append(part.begin, cut, &row.ids);
  row.ids.push_back(tokens_.separator());
  Append(second.begin, second.count, &row.ids);
  row.ids.push_back(tokens_.separator());
  return row;
}

TokenBatch BatchOfRows(const std::vector<SentencePairs::Row>& rows, bool pairs, const EncoderTokens& tokens) {
  TokenBatch batch;
  batch.rows = static_cast<uint32_t>(rows.size());
  size_t columns = 0;
  for (const SentencePairs::Row& row : rows) columns = std::max(columns, row.ids.size());
  batch.columns = static_cast<uint32_t>(columns);
  for (const SentencePairs::Row& row : rows) {
    batch.tokens.insert(batch.tokens.end(), row.ids.begin(), row.ids.end());
    batch.starts.resize(batch.tokens.size(), 0);
    batch.tokens.resize(batch.tokens.size() + columns - row.ids.size(), tokens.padding());
    batch.starts.resize(batch.tokens.size(), static_cast<uint32_t>(row.ids.size()));
    if (pairs) batch.row_values.push_back(row.follows ? 1.0f : 0.0f);
  }
  return batch;
}

}  // namespace millrace::text
