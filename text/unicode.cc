#include "text/unicode.h"

#include <vector>

#include "unicode/uchar.h"

namespace millrace::text {
namespace {

constexpr uint32_t kCodes = 0x110000;

// Two bits would do; a byte a character keeps the look-up one load.
const std::vector<CharacterClass>& Classes() {
  static const auto* classes = [] {
    auto* table = new std::vector<CharacterClass>(kCodes, CharacterClass::kOther);
    for (uint32_t code = 0; code < kCodes; ++code) {
      const auto mask = U_GET_GC_MASK(static_cast<UChar32>(code));
      CharacterClass& entry = (*table)[code];
      if (mask & U_GC_L_MASK) {
        entry = CharacterClass::kLetter;
      } else if (mask & U_GC_N_MASK) {
        entry = CharacterClass::kNumber;
      } else if (u_isUWhiteSpace(static_cast<UChar32>(code))) {
        entry = CharacterClass::kSpace;
      }
    }
    return table;
  }();
  return *classes;
}

bool Continues(unsigned char byte) { return (byte & 0xC0) == 0x80; }

}  // namespace

Character FirstCharacter(absl::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  const uint32_t a = p[0];
  if (a < 0x80) return {a, 1, true};
  const Character bad = {a, 1, false};
  if (a < 0xC2 || a > 0xF4) return bad;
  if (a < 0xE0) {
    if (n < 2 || !Continues(p[1])) return bad;
    return {(a & 0x1F) << 6 | (p[1] & 0x3Fu), 2, true};
  }
  if (a < 0xF0) {
    if (n < 3 || !Continues(p[1]) || !Continues(p[2])) return bad;
    const uint32_t code = (a & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    if (code < 0x800 || (code >= 0xD800 && code < 0xE000)) return bad;
    return {code, 3, true};
  }
  if (n < 4 || !Continues(p[1]) || !Continues(p[2]) || !Continues(p[3])) return bad;
  const uint32_t code = (a & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  if (code < 0x10000 || code >= kCodes) return bad;
  return {code, 4, true};
}

std::optional<size_t> FirstInvalidUtf8(absl::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    if (static_cast<unsigned char>(bytes[i]) < 0x80) {
      ++i;
      continue;
    }
    const Character character = FirstCharacter(bytes.substr(i));
    if (!character.valid) return i;
    i += character.bytes;
  }
  return std::nullopt;
}

uint64_t CountCharacters(absl::string_view text) {
  uint64_t count = 0;
  for (const char byte : text) count += !Continues(static_cast<unsigned char>(byte));
  return count;
}

void AppendUtf8(uint32_t code, std::string* out) {
  const auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

std::string WellFormed(absl::string_view text) {
  std::string good;
  while (!text.empty()) {
    const Character next = FirstCharacter(text);
    if (next.valid) {
      good.append(text.data(), next.bytes);
    } else {
      AppendUtf8(0xFFFD, &good);
    }
    text.remove_prefix(next.bytes);
  }
  return good;
}

CharacterClass Classify(uint32_t code) {
  static const std::vector<CharacterClass>& classes = Classes();
  return code < kCodes ? classes[code] : CharacterClass::kOther;
}

}  // namespace millrace::text
