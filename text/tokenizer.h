// Turns text into token ids and back.
//
// Tokenizers are read from and written to Hugging Face's tokenizer.json; its `tokenizers` library gives the same ids.
// docs/text.md says which kinds of the file are understood.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::text {

inline constexpr absl::string_view kEndOfText = "<|endoftext|>";

// A token that is matched in the text before any splitting.
struct AddedToken {
  uint32_t id = 0;
  std::string content;
  bool special = true;
  // Matched after those that are not.
  bool normalized = false;
};

// Constant after construction but for a cache of words inside, so that all methods may be called from any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`, added tokens (<|endoftext|>) recognised in it. INVALID_ARGUMENT, naming the character or byte and
  // its offset, for what the vocabulary lacks; a byte-level BPE with all 256 bytes takes every string, invalid UTF-8
  // too.
  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text) const;

  // As Encode, but an added token that touches a byte with `ordinary` set is ordinary characters: what a template says
  // is told from what its users say. Requires ordinary.size() == text.size(). Appends to `ids`.
  absl::Status EncodeMarked(absl::string_view text, absl::Span<const uint8_t> ordinary,
                            std::vector<uint32_t>* ids) const;

  // As Encode, but a text's own "<|endoftext|>" is ordinary characters. Appends to `ids`. Corpora are encoded so.
  virtual absl::Status EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const = 0;

  // The bytes of the tokens one after another; may cut UTF-8 characters. Ids that do not exist decode to nothing.
  // Guarantees Decode(*Encode(text)) == text.
  std::string Decode(absl::Span<const uint32_t> ids) const;

  // Ids are below this.
  virtual uint32_t vocab_size() const = 0;
  // Bytes of one token; empty for an id that does not exist.
  virtual std::string TokenBytes(uint32_t id) const = 0;
  // How many bytes of text each id stands for, [vocab_size]: none for special ones.
  std::vector<uint32_t> TextBytes() const;
  // An added token such as <|endoftext|>: stands for no bytes of the text.
  virtual bool IsSpecial(uint32_t id) const = 0;
  virtual absl::Span<const AddedToken> added_tokens() const = 0;
  // The id of the added token of this content, if there is one.
  std::optional<uint32_t> AddedId(absl::string_view content) const;
  // The id that separates documents, if the tokenizer has one.
  virtual std::optional<uint32_t> end_of_text() const = 0;
  // "bpe" or "char".
  virtual std::string kind() const = 0;
  virtual std::string ToJson() const = 0;  // tokenizer.json
  // tokenizer_config.json, which transformers reads beside it. `model_type` is config.json's: that of qwen2 makes
  // AutoTokenizer put its own pre-tokenizer and normaliser in the place of tokenizer.json's, whatever class is asked
  // for, but where auto_map names code of the folder's own; it then keeps the file if that code is not trusted. So the
  // folder of a qwen2 names code that it does not have: with trust_remote_code AutoTokenizer fails, and without it has
  // our ids.
  std::string ConfigJson(absl::string_view model_type) const;

 private:
  // Splits at added tokens of the given pass (AddedToken::normalized), then calls the next pass or EncodeOrdinary.
  absl::Status EncodeAround(absl::string_view text, absl::Span<const uint8_t> ordinary, bool normalized,
                            std::vector<uint32_t>* ids) const;
};

// Reads tokenizer.json, or the one in a folder. Errors name the file and the field that is missing or not supported.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);
// The same from memory; `name` stands for the file in errors.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizer(absl::string_view json, absl::string_view name);

// Calls its argument with every text in turn.
using ForEachText = std::function<absl::Status(const std::function<absl::Status(absl::string_view)>&)>;

struct BpeTraining {
  uint32_t vocab_size = 4096;  // <|endoftext|> and the 256 bytes included
  uint64_t min_frequency = 2;  // pairs seen less often are not merged
  // Added behind the others, with the ids from vocab_size on; those that are there already are left out.
  std::vector<std::string> special_tokens;
};

// Learns a byte-level BPE (Sennrich et al. 2016; GPT-2's bytes and pre-tokenizer). Id 0 is <|endoftext|>, then the 256
// bytes in the order of the characters that stand for them in tokenizer.json, then the merged tokens as they are made.
// Each merge takes the most frequent pair; among equals that with the smaller left id, then the smaller right id, as
// Hugging Face's BpeTrainer does. INVALID_ARGUMENT if the text supports fewer tokens, saying how many.
absl::StatusOr<std::unique_ptr<Tokenizer>> TrainBpe(const BpeTraining& training, const ForEachText& texts);

// One token a character: ids are the characters of the texts, ascending by code point, then `special_tokens`. Requires
// well-formed UTF-8.
absl::StatusOr<std::unique_ptr<Tokenizer>> TrainCharacters(const ForEachText& texts,
                                                           const std::vector<std::string>& special_tokens = {});

// Added tokens for `contents` with ids from `first_id` on. INVALID_ARGUMENT for an empty one, one given twice, one of
// more than 256 bytes or not UTF-8, or more than 1024 of them.
absl::StatusOr<std::vector<AddedToken>> SpecialTokens(absl::Span<const std::string> contents, uint32_t first_id);

}  // namespace millrace::text
