// Learns the merges of a byte-level BPE.
//
// Distinct words are counted once, then every merge touches only the words that hold its pair: pair counts are kept up
// to date by what each merge takes away and makes, and a heap gives the most frequent pair. An entry of the heap whose
// count is out of date is put back with the right one when it comes up (counts of a pair only fall once the merge that
// made it is done).
#include <algorithm>
#include <cstdint>
#include <limits>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace millrace::text {
namespace {

constexpr uint32_t kBaseTokens = 257;
constexpr size_t kMaxWordBytes = 1 << 20;  // longer words are only counted by their beginning

using Pair = std::pair<uint32_t, uint32_t>;

struct Word {
  std::vector<uint32_t> parts;
  int64_t count = 0;
};

struct PairUse {
  int64_t count = 0;
  std::vector<uint32_t> words;  // that hold it or once did; may repeat
};

struct Candidate {
  int64_t count;
  Pair pair;
  // The heap's top is the most frequent, then the smallest.
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

struct Change {
  Pair pair;
  int delta;
};

// Replaces the pair in the word, from the left, and tells which pairs go and come.
void MergeIn(Word* word, Pair pair, uint32_t merged, std::vector<Change>* changes) {
  std::vector<uint32_t>& parts = word->parts;
  size_t out = 0;
  for (size_t i = 0; i < parts.size(); ++out) {
    if (i + 1 == parts.size() || parts[i] != pair.first || parts[i + 1] != pair.second) {
      parts[out] = parts[i++];
      continue;
    }
    if (out > 0) {
      changes->push_back({{parts[out - 1], pair.first}, -1});
      changes->push_back({{parts[out - 1], merged}, +1});
    }
    if (i + 2 < parts.size()) {
      changes->push_back({{pair.second, parts[i + 2]}, -1});
      changes->push_back({{merged, parts[i + 2]}, +1});
    }
    parts[out] = merged;
    i += 2;
  }
  parts.resize(out);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> TrainBpe(const BpeTraining& training, const ForEachText& texts) {
  if (training.vocab_size < kBaseTokens) {
    return absl::InvalidArgumentError(absl::StrCat("vocab_size ", training.vocab_size, " is below ", kBaseTokens, ": ",
                                                   kEndOfText, " and the 256 bytes"));
  }
  BpeVocabulary vocabulary;
  vocabulary.tokens.push_back(std::string(kEndOfText));
  vocabulary.added.push_back({.id = 0, .content = std::string(kEndOfText), .special = true, .normalized = false});
  std::vector<std::pair<uint32_t, uint8_t>> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(CharacterOfByte(static_cast<uint8_t>(byte)), byte);
  std::sort(bytes.begin(), bytes.end());
  std::vector<uint32_t> id_of_byte(256);
  absl::flat_hash_map<std::string, uint32_t> ids;
  for (const auto& [character, byte] : bytes) {
    id_of_byte[byte] = static_cast<uint32_t>(vocabulary.tokens.size());
    vocabulary.tokens.push_back(std::string(1, static_cast<char>(byte)));
    ids[vocabulary.tokens.back()] = id_of_byte[byte];
  }

  absl::flat_hash_map<std::string, int64_t> counts;
  MILLRACE_RETURN_IF_ERROR(texts([&counts](absl::string_view text) {
    for (size_t at = 0; at < text.size();) {
      const size_t size = FirstWord(text.substr(at));
      ++counts[text.substr(at, std::min(size, kMaxWordBytes))];
      at += size;
    }
    return absl::OkStatus();
  }));
  // No order of the map reaches the result: pairs are chosen by count and ids alone.
  std::vector<Word> words;
  words.reserve(counts.size());
  for (const auto& [bytes_of_word, count] : counts) {
    Word word;
    word.count = count;
    for (const char byte : bytes_of_word) word.parts.push_back(id_of_byte[static_cast<uint8_t>(byte)]);
    words.push_back(std::move(word));
  }
  counts = {};
  if (words.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::ResourceExhaustedError("more than 4 billion distinct words");
  }

  absl::flat_hash_map<Pair, PairUse> pairs;
  for (uint32_t w = 0; w < words.size(); ++w) {
    const std::vector<uint32_t>& parts = words[w].parts;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      PairUse& use = pairs[{parts[i], parts[i + 1]}];
      use.count += words[w].count;
      if (use.words.empty() || use.words.back() != w) use.words.push_back(w);
    }
  }
  std::priority_queue<Candidate> queue;
  for (const auto& [pair, use] : pairs) queue.push({use.count, pair});

  const auto min_count = static_cast<int64_t>(std::max<uint64_t>(training.min_frequency, 1));
  std::vector<Change> changes;
  std::vector<Pair> made;
  while (vocabulary.tokens.size() < training.vocab_size) {
    if (queue.empty() || queue.top().count < min_count) {
      return absl::InvalidArgumentError(absl::StrCat(
          "vocab_size ", training.vocab_size, " is larger than the training text supports: at most ",
          vocabulary.tokens.size(), " (", vocabulary.tokens.size() - kBaseTokens, " pairs occur at least ", min_count,
          " times, besides the 256 bytes and ", kEndOfText, "); lower tokenizer.vocab_size or add text"));
    }
    const Candidate top = queue.top();
    queue.pop();
    const auto found = pairs.find(top.pair);
    const int64_t count = found == pairs.end() ? 0 : found->second.count;
    if (count != top.count) {
      if (count >= min_count && count < top.count) queue.push({count, top.pair});
      continue;
    }
    // The same bytes may come about from two pairs; they are one token.
    const auto [token, fresh] = ids.emplace(vocabulary.tokens[top.pair.first] + vocabulary.tokens[top.pair.second],
                                            static_cast<uint32_t>(vocabulary.tokens.size()));
    const uint32_t merged = token->second;
    if (fresh) vocabulary.tokens.push_back(token->first);
    vocabulary.merges.push_back(top.pair);

    const std::vector<uint32_t> touched = std::move(found->second.words);
    pairs.erase(found);
    made.clear();
    for (const uint32_t w : touched) {
      changes.clear();
      MergeIn(&words[w], top.pair, merged, &changes);
      for (const Change& change : changes) {
        if (change.pair == top.pair) continue;  // an overlap: a a a
        PairUse& use = pairs[change.pair];
        use.count += change.delta * words[w].count;
        if (change.delta > 0) {
          if (use.words.empty() || use.words.back() != w) use.words.push_back(w);
          made.push_back(change.pair);
        }
      }
    }
    std::sort(made.begin(), made.end());
    made.erase(std::unique(made.begin(), made.end()), made.end());
    for (const Pair& pair : made) {
      if (const int64_t made_count = pairs[pair].count; made_count >= min_count) queue.push({made_count, pair});
    }
  }
  std::vector<std::string> more;
  for (const std::string& content : training.special_tokens) {
    if (content != kEndOfText) more.push_back(content);
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<AddedToken> added,
                            SpecialTokens(more, static_cast<uint32_t>(vocabulary.tokens.size())));
  for (const AddedToken& token : added) {
    vocabulary.tokens.push_back(token.content);
    vocabulary.added.push_back(token);
  }
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<BpeTokenizer> tokenizer, BpeTokenizer::Create(std::move(vocabulary)));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace millrace::text
