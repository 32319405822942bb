// Cuts text into words as GPT-2 does; a byte-level BPE merges only inside a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::text {

// Bytes of the first word of `text` by GPT-2's rule (Radford et al. 2019, encoder.py):
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Bytes that are not UTF-8 count as characters that are neither letter, number nor space. Requires a text that is not
// empty; the words of a text, one after another, are the text.
size_t FirstWord(absl::string_view text);

// The character (its code point) that stands for `byte` in tokenizer.json: itself if it is printable, else 256 and up.
uint32_t CharacterOfByte(uint8_t byte);
// The other way: -1 for a character that stands for none.
int ByteOfCharacter(uint32_t code);

// Those of several bytes one after another, as UTF-8.
std::string ByteLevel(absl::string_view bytes);

}  // namespace millrace::text
