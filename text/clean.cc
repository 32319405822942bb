#include "text/clean.h"

#include "absl/strings/str_cat.h"
#include "text/unicode.h"
#include "unicode/bytestream.h"
#include "unicode/casemap.h"
#include "unicode/normalizer2.h"
#include "unicode/stringpiece.h"

namespace millrace::text {
namespace {

absl::Status Icu(UErrorCode code, absl::string_view doing) {
  if (U_SUCCESS(code)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(doing, ": ICU says ", u_errorName(code)));
}

icu::StringPiece Piece(absl::string_view text) { return {text.data(), static_cast<int32_t>(text.size())}; }

std::string WithoutControl(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '\r') {
      if (i + 1 >= text.size() || text[i + 1] != '\n') out.push_back('\n');
    } else if ((byte >= 0x20 && byte != 0x7F) || byte == '\n' || byte == '\t') {
      // U+0080 to U+009F are C2 80 to C2 9F; U+FEFF is EF BB BF.
      if (byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0) {
        ++i;
      } else if (byte == 0xEF && text.substr(i, 3) == "\xEF\xBB\xBF") {
        i += 2;
      } else {
        out.push_back(text[i]);
      }
    }
  }
  return out;
}

// ASCII for a typographic character; nullptr if it stays.
const char* Straight(uint32_t code) {
  switch (code) {
    case 0x2018:
    case 0x2019:
    case 0x201A:
    case 0x201B:
    case 0x2032:
    case 0x2039:
    case 0x203A:
      return "'";
    case 0x201C:
    case 0x201D:
    case 0x201E:
    case 0x201F:
    case 0x2033:
    case 0x00AB:
    case 0x00BB:
      return "\"";
    case 0x2010:
    case 0x2011:
    case 0x2012:
    case 0x2013:
    case 0x2014:
    case 0x2015:
    case 0x2212:
      return "-";
    case 0x2026:
      return "...";
    case 0x00A0:
    case 0x202F:
      return " ";
    default:
      return nullptr;
  }
}

std::string WithPlainPunctuation(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte != 0xC2 && byte != 0xE2) {  // what Straight knows begins so
      out.push_back(text[i++]);
      continue;
    }
    const Character character = FirstCharacter(text.substr(i));
    if (const char* straight = Straight(character.code)) {
      out += straight;
    } else {
      absl::StrAppend(&out, text.substr(i, character.bytes));
    }
    i += character.bytes;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> Clean(const v1::CleanSpec& spec, absl::string_view text) {
  if (const auto bad = FirstInvalidUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat("byte ", *bad, " is not UTF-8"));
  }
  if (text.size() > (1u << 30)) return absl::ResourceExhaustedError("a document of more than 1 GB");
  std::string cleaned = spec.control() ? WithoutControl(text) : std::string(text);
  UErrorCode code = U_ZERO_ERROR;
  if (spec.unicode() == "nfc" || spec.unicode() == "nfkc") {
    const icu::Normalizer2* normalizer =
        spec.unicode() == "nfc" ? icu::Normalizer2::getNFCInstance(code) : icu::Normalizer2::getNFKCInstance(code);
    if (absl::Status status = Icu(code, "loading Unicode normalisation"); !status.ok()) return status;
    if (!normalizer->isNormalizedUTF8(Piece(cleaned), code)) {
      std::string normal;
      icu::StringByteSink<std::string> sink(&normal, static_cast<int32_t>(cleaned.size()));
      normalizer->normalizeUTF8(0, Piece(cleaned), sink, nullptr, code);
      cleaned = std::move(normal);
    }
    if (absl::Status status = Icu(code, "normalising"); !status.ok()) return status;
  } else if (spec.unicode() != "none" && !spec.unicode().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("data.clean.unicode is '", spec.unicode(), "'; none, nfc or nfkc"));
  }
  if (spec.lowercase()) {
    std::string lower;
    icu::StringByteSink<std::string> sink(&lower, static_cast<int32_t>(cleaned.size()));
    icu::CaseMap::utf8ToLower("", 0, Piece(cleaned), sink, nullptr, code);
    if (absl::Status status = Icu(code, "lower-casing"); !status.ok()) return status;
    cleaned = std::move(lower);
  }
  return spec.punctuation() ? WithPlainPunctuation(cleaned) : cleaned;
}

}  // namespace millrace::text
