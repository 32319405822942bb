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
  // Requires distinct Unicode characters; a character's id is its place.
  explicit CharacterTokenizer(std::vector<uint32_t> characters);

  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text) const override;
  absl::Status EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const override;
  uint32_t vocab_size() const override { return static_cast<uint32_t>(characters_.size()); }
  std::string TokenBytes(uint32_t id) const override;
  bool IsSpecial(uint32_t id) const override { return false; }
  std::optional<uint32_t> end_of_text() const override { return std::nullopt; }
  std::string kind() const override { return "char"; }
  // A WordLevel model behind a Split before and after every character, and Fuse as the decoder.
  std::string ToJson() const override;

 private:
  const std::vector<uint32_t> characters_;
  absl::flat_hash_map<uint32_t, uint32_t> ids_;
};

}  // namespace millrace::text
