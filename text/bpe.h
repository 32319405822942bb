// Encodes with a byte-level BPE.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "text/tokenizer.h"

namespace millrace::text {

// What a tokenizer.json of this kind says.
struct BpeVocabulary {
  // Bytes of each token, and the empty string for an id that does not exist: [vocab_size]. Added tokens included.
  std::vector<std::string> tokens;
  // In order of rank: ids of the left and right part. The merged token is the one of the joined bytes.
  std::vector<std::pair<uint32_t, uint32_t>> merges;
  std::vector<AddedToken> added;
};

class BpeTokenizer final : public Tokenizer {
 public:
  // INVALID_ARGUMENT if two tokens have the same bytes or a merge names or makes a token that does not exist.
  static absl::StatusOr<std::unique_ptr<BpeTokenizer>> Create(BpeVocabulary vocabulary);

  absl::Status EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const override;
  uint32_t vocab_size() const override { return static_cast<uint32_t>(vocabulary_.tokens.size()); }
  std::string TokenBytes(uint32_t id) const override;
  bool IsSpecial(uint32_t id) const override { return id < is_added_.size() && is_added_[id]; }
  absl::Span<const AddedToken> added_tokens() const override { return vocabulary_.added; }
  std::optional<uint32_t> end_of_text() const override { return end_of_text_; }
  std::string kind() const override { return "bpe"; }
  std::string ToJson() const override;

  const BpeVocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint32_t rank;
    uint32_t id;
  };
  using Cache = absl::flat_hash_map<std::string, std::vector<uint32_t>>;

  explicit BpeTokenizer(BpeVocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  absl::Status EncodeWith(absl::string_view text, Cache* cache, std::vector<uint32_t>* ids) const;
  absl::Status EncodeWord(absl::string_view word, std::vector<uint32_t>* ids) const;

  const BpeVocabulary vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by left << 32 | right
  std::array<int64_t, 256> byte_ids_ = {};       // -1: the vocabulary lacks the byte
  std::vector<bool> is_added_;
  std::optional<uint32_t> end_of_text_;
  // Words that were encoded before. A call that finds it taken uses one of its own.
  mutable absl::Mutex cache_mutex_;
  mutable Cache cache_ ABSL_GUARDED_BY(cache_mutex_);
};

}  // namespace millrace::text
