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

// Constant after construction but for a cache of words inside, so that all methods may be called from any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`, added tokens (<|endoftext|>) recognised in it. INVALID_ARGUMENT, naming the character or byte and
  // its offset, for what the vocabulary lacks; a byte-level BPE with all 256 bytes takes every string, invalid UTF-8
  // too.
  virtual absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text) const = 0;

  // As Encode, but a text's own "<|endoftext|>" is ordinary characters. Appends to `ids`. Corpora are encoded so.
  virtual absl::Status EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const = 0;

  // The bytes of the tokens one after another; may cut UTF-8 characters. Ids that do not exist decode to nothing.
  // Guarantees Decode(*Encode(text)) == text.
  std::string Decode(absl::Span<const uint32_t> ids) const;

  // Ids are below this.
  virtual uint32_t vocab_size() const = 0;
  // Bytes of one token; empty for an id that does not exist.
  virtual std::string TokenBytes(uint32_t id) const = 0;
  // An added token such as <|endoftext|>: stands for no bytes of the text.
  virtual bool IsSpecial(uint32_t id) const = 0;
  // The id that separates documents, if the tokenizer has one.
  virtual std::optional<uint32_t> end_of_text() const = 0;
  // "bpe" or "char".
  virtual std::string kind() const = 0;
  // tokenizer.json and tokenizer_config.json, which transformers reads beside it.
  virtual std::string ToJson() const = 0;
  std::string ConfigJson() const;
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
};

// Learns a byte-level BPE (Sennrich et al. 2016; GPT-2's bytes and pre-tokenizer). Id 0 is <|endoftext|>, then the 256
// bytes in the order of the characters that stand for them in tokenizer.json, then the merged tokens as they are made.
// Each merge takes the most frequent pair; among equals that with the smaller left id, then the smaller right id, as
// Hugging Face's BpeTrainer does. INVALID_ARGUMENT if the text supports fewer tokens, saying how many.
absl::StatusOr<std::unique_ptr<Tokenizer>> TrainBpe(const BpeTraining& training, const ForEachText& texts);

// One token a character: ids are the characters of the texts, ascending by code point. Requires well-formed UTF-8.
absl::StatusOr<std::unique_ptr<Tokenizer>> TrainCharacters(const ForEachText& texts);

}  // namespace millrace::text
