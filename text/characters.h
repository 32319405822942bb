// Encodes one token a character.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "text/tokenizer.h"

namespace millrace::text {

class CharacterTokenizer final : public Tokenizer {
 public:
  // Requires distinct Unicode characters, whose ids are their places, and added tokens with the ids behind them.
  explicit CharacterTokenizer(std::vector<uint32_t> characters, std::vector<AddedToken> added = {});

  absl::Status EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const override;
  uint32_t vocab_size() const override { return static_cast<uint32_t>(characters_.size() + added_.size()); }
  std::string TokenBytes(uint32_t id) const override;
  bool IsSpecial(uint32_t id) const override { return id >= characters_.size() && id < vocab_size(); }
  absl::Span<const AddedToken> added_tokens() const override { return added_; }
  std::optional<uint32_t> end_of_text() const override { return AddedId(kEndOfText); }
  std::string kind() const override { return "char"; }
  // A WordLevel model behind a Split before and after every character, and Fuse as the decoder.
  std::string ToJson() const override;

 private:
  const std::vector<uint32_t> characters_;
  const std::vector<AddedToken> added_;
  absl::flat_hash_map<uint32_t, uint32_t> ids_;
};

}  // namespace millrace::text
