#include "text/readable_text.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "text/unicode.h"

namespace millrace::text {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// Whether some bytes can follow with which `bytes` is one well-formed character (Unicode 15, table 3-7).
bool BeginsCharacter(absl::string_view bytes) {
  const auto at = [bytes](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (bytes.size() >= length) return false;
  for (size_t i = 1; i < bytes.size(); ++i) {
    // The second byte excludes overlong forms, surrogates and what is above U+10FFFF.
    const uint8_t least = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t most = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (at(i) < least || at(i) > most) return false;
  }
  return true;
}

}  // namespace

std::string ReadableText::Add(absl::string_view bytes) {
  const std::string all = absl::StrCat(waiting_, bytes);
  waiting_.clear();
  std::string readable;
  for (absl::string_view rest = all; !rest.empty();) {
    const Character character = FirstCharacter(rest);
    if (character.valid) {
      absl::StrAppend(&readable, rest.substr(0, character.bytes));
      rest.remove_prefix(character.bytes);
      continue;
    }
    if (BeginsCharacter(rest)) {
      waiting_ = std::string(rest);
      break;
    }
    absl::StrAppend(&readable, kReplacement);
    rest.remove_prefix(1);
  }
  return readable;
}

std::string ReadableText::Finish() {
  if (waiting_.empty()) return "";
  waiting_.clear();
  return kReplacement;
}

std::string ReadableTextOf(absl::string_view bytes) {
  ReadableText text;
  std::string readable = text.Add(bytes);
  return readable + text.Finish();
}

std::string QuotedText(absl::string_view bytes) { return nlohmann::json(ReadableTextOf(bytes)).dump(); }

}  // namespace millrace::text
