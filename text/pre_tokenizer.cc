#include "text/pre_tokenizer.h"

#include <array>

#include "text/unicode.h"

namespace millrace::text {
namespace {

struct Seen {
  CharacterClass kind;
  uint32_t bytes;
};

Seen Look(absl::string_view text, size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) return {Classify(byte), 1};
  const Character character = FirstCharacter(text.substr(at));
  return {character.valid ? Classify(character.code) : CharacterClass::kOther, character.bytes};
}

// End of the run of `kind` from `at` on.
size_t RunEnd(absl::string_view text, size_t at, CharacterClass kind) {
  while (at < text.size()) {
    const Seen seen = Look(text, at);
    if (seen.kind != kind) break;
    at += seen.bytes;
  }
  return at;
}

struct ByteCharacters {
  std::array<uint32_t, 256> character;
  std::array<int, 512> byte;
};

constexpr ByteCharacters MakeByteCharacters() {
  ByteCharacters map = {};
  for (int& byte : map.byte) byte = -1;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    map.character[b] = printable ? b : next++;
    map.byte[map.character[b]] = static_cast<int>(b);
  }
  return map;
}

constexpr ByteCharacters kByteCharacters = MakeByteCharacters();

}  // namespace

size_t FirstWord(absl::string_view text) {
  if (text[0] == '\'' && text.size() > 1) {
    const char next = text[1];
    if (next == 's' || next == 't' || next == 'm' || next == 'd') return 2;
    if (text.size() > 2) {
      const char third = text[2];
      if ((next == 'r' && third == 'e') || (next == 'v' && third == 'e') || (next == 'l' && third == 'l')) return 3;
    }
  }
  const Seen first = Look(text, 0);
  if (first.kind != CharacterClass::kSpace) return RunEnd(text, first.bytes, first.kind);
  if (text[0] == ' ' && text.size() > 1) {
    const Seen second = Look(text, 1);
    if (second.kind != CharacterClass::kSpace) return RunEnd(text, 1 + second.bytes, second.kind);
  }
  // \s+(?!\S): all of the white space, but for its last character if something else follows and it is not the only one.
  size_t end = first.bytes;
  size_t last = 0;
  while (end < text.size()) {
    const Seen seen = Look(text, end);
    if (seen.kind != CharacterClass::kSpace) break;
    last = end;
    end += seen.bytes;
  }
  return end == text.size() || last == 0 ? end : last;
}

uint32_t CharacterOfByte(uint8_t byte) { return kByteCharacters.character[byte]; }

std::string ByteLevel(absl::string_view bytes) {
  std::string characters;
  for (const char byte : bytes) AppendUtf8(CharacterOfByte(static_cast<uint8_t>(byte)), &characters);
  return characters;
}

int ByteOfCharacter(uint32_t code) { return code < kByteCharacters.byte.size() ? kByteCharacters.byte[code] : -1; }

}  // namespace millrace::text
