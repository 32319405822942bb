#include "text/characters.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/added_tokens_json.h"
#include "text/unicode.h"

namespace millrace::text {
namespace {
using Json = nlohmann::ordered_json;
}

CharacterTokenizer::CharacterTokenizer(std::vector<uint32_t> characters, std::vector<AddedToken> added)
    : characters_(std::move(characters)), added_(std::move(added)) {
  for (uint32_t id = 0; id < characters_.size(); ++id) ids_[characters_[id]] = id;
}

absl::Status CharacterTokenizer::EncodeOrdinary(absl::string_view text, std::vector<uint32_t>* ids) const {
  for (size_t at = 0; at < text.size();) {
    const Character character = FirstCharacter(text.substr(at));
    if (!character.valid) {
      return absl::InvalidArgumentError(absl::StrFormat("byte %d (0x%02x) is not UTF-8", at, character.code));
    }
    const auto id = ids_.find(character.code);
    if (id == ids_.end()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "the character U+%04X (%s) at byte %d is none of the %d that the tokenizer knows", character.code,
          character.code < 0x20 ? "control" : std::string(text.substr(at, character.bytes)), at, characters_.size()));
    }
    ids->push_back(id->second);
    at += character.bytes;
  }
  return absl::OkStatus();
}

std::string CharacterTokenizer::TokenBytes(uint32_t id) const {
  std::string bytes;
  if (id < characters_.size()) AppendUtf8(characters_[id], &bytes);
  if (IsSpecial(id)) bytes = added_[id - characters_.size()].content;
  return bytes;
}

std::string CharacterTokenizer::ToJson() const {
  Json vocab = Json::object();
  for (uint32_t id = 0; id < characters_.size(); ++id) vocab.push_back({TokenBytes(id), id});
  const Json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", AddedTokensJson(added_)},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "[\\s\\S]"}}}, {"behavior", "Isolated"}, {"invert", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "Fuse"}}},
      // The name of a token that is not there: `tokenizers` then refuses unknown characters, as we do.
      {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "<unk>"}}}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<std::unique_ptr<Tokenizer>> TrainCharacters(const ForEachText& texts,
                                                           const std::vector<std::string>& special_tokens) {
  std::vector<bool> seen(0x110000, false);
  MILLRACE_RETURN_IF_ERROR(texts([&seen](absl::string_view text) {
    for (size_t at = 0; at < text.size();) {
      const Character character = FirstCharacter(text.substr(at));
      if (!character.valid) {
        return absl::InvalidArgumentError(absl::StrFormat("byte %d (0x%02x) is not UTF-8", at, character.code));
      }
      seen[character.code] = true;
      at += character.bytes;
    }
    return absl::OkStatus();
  }));
  std::vector<uint32_t> characters;
  for (uint32_t code = 0; code < seen.size(); ++code) {
    if (seen[code]) characters.push_back(code);
  }
  if (characters.empty()) return absl::InvalidArgumentError("no text to take characters from");
  MILLRACE_ASSIGN_OR_RETURN(std::vector<AddedToken> added,
                            SpecialTokens(special_tokens, static_cast<uint32_t>(characters.size())));
  return std::make_unique<CharacterTokenizer>(std::move(characters), std::move(added));
}

}  // namespace millrace::text
