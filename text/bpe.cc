#include "text/bpe.h"

#include <algorithm>
#include <queue>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/added_tokens_json.h"
#include "text/pre_tokenizer.h"

namespace millrace::text {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxCachedWords = 1 << 18;
constexpr size_t kMaxCachedWordBytes = 64;
// Up to here looking for the best pair each time is faster than a queue.
constexpr size_t kShortWord = 48;
constexpr uint32_t kNone = ~uint32_t{0};

uint64_t PairKey(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

}  // namespace

absl::StatusOr<std::unique_ptr<BpeTokenizer>> BpeTokenizer::Create(BpeVocabulary vocabulary) {
  auto tokenizer = std::unique_ptr<BpeTokenizer>(new BpeTokenizer(std::move(vocabulary)));
  const BpeVocabulary& v = tokenizer->vocabulary_;
  tokenizer->is_added_.assign(v.tokens.size(), false);
  for (const AddedToken& token : v.added) {
    if (token.id >= v.tokens.size())
      return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " is beyond the vocabulary"));
    tokenizer->is_added_[token.id] = true;
    if (token.content == kEndOfText) tokenizer->end_of_text_ = token.id;
  }
  absl::flat_hash_map<absl::string_view, uint32_t> ids;
  tokenizer->byte_ids_.fill(-1);
  for (uint32_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& bytes = v.tokens[id];
    if (bytes.empty() || tokenizer->is_added_[id]) continue;
    if (const auto [entry, fresh] = ids.emplace(bytes, id); !fresh) {
      return absl::InvalidArgumentError(absl::StrCat("tokens ", entry->second, " and ", id, " are the same bytes"));
    }
    if (bytes.size() == 1) tokenizer->byte_ids_[static_cast<uint8_t>(bytes[0])] = id;
  }
  tokenizer->merges_.reserve(v.merges.size());
  for (uint32_t rank = 0; rank < v.merges.size(); ++rank) {
    const auto [left, right] = v.merges[rank];
    if (left >= v.tokens.size() || right >= v.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat("merge ", rank, " names a token beyond the vocabulary"));
    }
    const auto merged = ids.find(v.tokens[left] + v.tokens[right]);
    if (merged == ids.end()) {
      return absl::InvalidArgumentError(absl::StrCat("merge ", rank, " makes \"",
                                                     ByteLevel(v.tokens[left] + v.tokens[right]),
                                                     "\", which is not in the vocabulary"));
    }
    // Of a pair listed twice the later rank counts, as in Hugging Face's map.
    tokenizer->merges_[PairKey(left, right)] = {rank, merged->second};
  }
  return tokenizer;
}

absl::Status BpeTokenizer::EncodeWord(absl::string_view word, std::vector<uint32_t>* ids) const {
  std::vector<uint32_t> parts;
  parts.reserve(word.size());
  for (const char byte : word) {
    const int64_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("byte 0x%02x is not in the tokenizer's vocabulary", static_cast<uint8_t>(byte)));
    }
    parts.push_back(static_cast<uint32_t>(id));
  }
  // The lowest rank first, among equals the leftmost, one at a time.
  if (parts.size() <= kShortWord) {
    while (parts.size() > 1) {
      Merge best = {kNone, 0};
      size_t at = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto merge = merges_.find(PairKey(parts[i], parts[i + 1]));
        if (merge != merges_.end() && merge->second.rank < best.rank) {
          best = merge->second;
          at = i;
        }
      }
      if (best.rank == kNone) break;
      parts[at] = best.id;
      parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
    ids->insert(ids->end(), parts.begin(), parts.end());
    return absl::OkStatus();
  }

  // The same with a queue over a linked list: a word may be as long as the text.
  struct Candidate {
    uint32_t rank;
    uint32_t at;
    uint32_t id;
    uint32_t left, right;  // what was there: stale if something else is now
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  if (parts.size() >= kNone) return absl::ResourceExhaustedError("a word of more than 4 GB");
  const auto size = static_cast<uint32_t>(parts.size());
  std::vector<uint32_t> next(size), previous(size);
  for (uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1 < size ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
  }
  std::priority_queue<Candidate> queue;
  const auto consider = [&](uint32_t at) {
    if (at == kNone || next[at] == kNone) return;
    const uint32_t left = parts[at], right = parts[next[at]];
    const auto merge = merges_.find(PairKey(left, right));
    if (merge != merges_.end()) queue.push({merge->second.rank, at, merge->second.id, left, right});
  };
  for (uint32_t i = 0; i < size; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const uint32_t right = parts[top.at] == top.left ? next[top.at] : kNone;
    if (right == kNone || parts[right] != top.right) continue;
    parts[top.at] = top.id;
    parts[right] = kNone;
    next[top.at] = next[right];
    if (next[right] != kNone) previous[next[right]] = top.at;
    consider(previous[top.at]);
    consider(top.at);
  }
  for (uint32_t at = 0; at != kNone; at = next[at]) ids->push_back(parts[at]);
  return absl::OkStatus();
}

absl::Status BpeTokenizer::EncodeWith(absl::string_view text, Cache* cache, std::vector<uint32_t>* ids) const {
  for (size_t at = 0; at < text.size();) {
    const size_t size = FirstWord(text.substr(at));
    const absl::string_view word = text.substr(at, size);
    if (size == 1 && byte_ids_[static_cast<uint8_t>(word[0])] >= 0) {
      ids->push_back(static_cast<uint32_t>(byte_ids_[static_cast<uint8_t>(word[0])]));
    } else if (size <= kMaxCachedWordBytes) {
      if (const auto known = cache->find(word); known != cache->end()) {
        ids->insert(ids->end(), known->second.begin(), known->second.end());
      } else {
        const size_t before = ids->size();
        if (absl::Status status = EncodeWord(word, ids); !status.ok())
          return Annotate(status, absl::StrCat("at byte ", at));
        if (cache->size() >= kMaxCachedWords) cache->clear();
        cache->emplace(word, std::vector<uint32_t>(ids->begin() + static_cast<ptrdiff_t>(before), ids->end()));
      }
    } else if (absl::Status status = EncodeWord(word, ids); !status.ok()) {
      return Annotate(status, absl::StrCat("at byte ", at));
    }
    at += size;
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const {
  if (cache_mutex_.TryLock()) {
    const absl::Status status = EncodeWith(text, &cache_, ids);
    cache_mutex_.Unlock();
    return status;
  }
  Cache cache;
  return EncodeWith(text, &cache, ids);
}

std::string BpeTokenizer::TokenBytes(uint32_t id) const { return id < vocab_size() ? vocabulary_.tokens[id] : ""; }

std::string BpeTokenizer::ToJson() const {
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  Json vocab = Json::object();
  for (uint32_t id = 0; id < vocab_size(); ++id) {
    if (vocabulary_.tokens[id].empty()) continue;
    vocab.push_back({is_added_[id] ? vocabulary_.tokens[id] : ByteLevel(vocabulary_.tokens[id]), id});
  }
  // "left right" strings: every release of `tokenizers` reads them, and byte-level characters hold no space.
  Json merges = Json::array();
  for (const auto& [left, right] : vocabulary_.merges) {
    merges.push_back(absl::StrCat(ByteLevel(vocabulary_.tokens[left]), " ", ByteLevel(vocabulary_.tokens[right])));
  }
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", AddedTokensJson(vocabulary_.added)},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", false},
                       {"vocab", vocab},
                       {"merges", merges}}}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace millrace::text
