// Reads UTF-8 and classifies characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::text {

// Offset of the first byte that is not part of a well-formed UTF-8 sequence (Unicode 15, table 3-7: no surrogates, no
// overlong forms, nothing above U+10FFFF); nullopt if all of `bytes` is well formed.
std::optional<size_t> FirstInvalidUtf8(absl::string_view bytes);

// One character at the front of a text. Where the text is not well formed, the first byte alone, with `valid` false.
struct Character {
  uint32_t code = 0;
  uint32_t bytes = 0;
  bool valid = false;
};
// Requires a text that is not empty.
Character FirstCharacter(absl::string_view text);

// Number of characters of well-formed text.
uint64_t CountCharacters(absl::string_view text);

void AppendUtf8(uint32_t code, std::string* out);

// With U+FFFD for each byte that is part of no character.
std::string WellFormed(absl::string_view text);

// What GPT-2's pre-tokenizer tells apart.
enum class CharacterClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

// General categories L* and N*, and the White_Space property, as ICU has them; else, and for what is no character,
// kOther.
CharacterClass Classify(uint32_t code);

}  // namespace millrace::text
