#include "text/jinja_value.h"

#include <unicode/locid.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "text/unicode.h"

namespace millrace::text::jinja {
namespace {

// As str.isspace() has it.
bool IsSpace(uint32_t code) { return Classify(code) == CharacterClass::kSpace || (code >= 0x1C && code <= 0x1F); }

MarkedText WithCase(const MarkedText& text, bool upper) {
  MarkedText changed;
  // By runs of one origin, so that a character which becomes several keeps its own.
  for (size_t begin = 0, end = 0; begin < text.text.size(); begin = end) {
    while (end < text.text.size() && text.own[end] == text.own[begin]) ++end;
    icu::UnicodeString run =
        icu::UnicodeString::fromUTF8(icu::StringPiece(text.text.data() + begin, static_cast<int32_t>(end - begin)));
    std::string bytes;
    (upper ? run.toUpper(icu::Locale::getRoot()) : run.toLower(icu::Locale::getRoot())).toUTF8String(bytes);
    changed.Append(MarkedText::Of(bytes, text.own[begin] != 0));
  }
  return changed;
}

}  // namespace

std::optional<int64_t> Value::number() const {
  if (const auto* number = std::get_if<int64_t>(&is)) return *number;
  if (const auto* truth = std::get_if<bool>(&is)) return *truth ? 1 : 0;
  return std::nullopt;
}

bool Value::truth() const {
  if (const auto value = number()) return *value != 0;
  if (text() != nullptr) return !text()->text.empty();
  if (list() != nullptr) return !list()->empty();
  if (dict() != nullptr) return !dict()->empty();
  return space() != nullptr;
}

absl::string_view Value::kind() const {
  constexpr absl::string_view kKinds[] = {"undefined", "none",   "true or false", "a number",
                                          "a string",  "a list", "a dict",        "a namespace"};
  return kKinds[is.index()];
}

const Value* Find(const Dict& dict, absl::string_view key) {
  for (const auto& [name, value] : dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::vector<size_t> Offsets(const MarkedText& text) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.text.size(); at += FirstCharacter(absl::string_view(text.text).substr(at)).bytes)
    offsets.push_back(at);
  offsets.push_back(text.text.size());
  return offsets;
}

int64_t Length(const MarkedText& text) { return static_cast<int64_t>(Offsets(text).size()) - 1; }

MarkedText Strip(const MarkedText& text, bool left, bool right, const std::optional<std::string>& characters) {
  const std::vector<size_t> offsets = Offsets(text);
  const auto goes = [&](size_t index) {
    const absl::string_view character =
        absl::string_view(text.text).substr(offsets[index], offsets[index + 1] - offsets[index]);
    return characters ? absl::string_view(*characters).find(character) != absl::string_view::npos
                      : IsSpace(FirstCharacter(character).code);
  };
  size_t begin = 0, end = offsets.size() - 1;
  while (left && begin < end && goes(begin)) ++begin;
  while (right && begin < end && goes(end - 1)) --end;
  return text.Part(offsets[begin], offsets[end] - offsets[begin]);
}

MarkedText Upper(const MarkedText& text) { return WithCase(text, true); }
MarkedText Lower(const MarkedText& text) { return WithCase(text, false); }

MarkedText Capitalized(const MarkedText& text, bool each_word) {
  MarkedText changed;
  const std::vector<size_t> offsets = Offsets(text);
  bool first = true;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const MarkedText character = text.Part(offsets[i], offsets[i + 1] - offsets[i]);
    changed.Append(WithCase(character, first));
    const uint32_t code = FirstCharacter(character.text).code;
    first = each_word && (IsSpace(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<');
  }
  return changed;
}

std::vector<MarkedText> Split(const MarkedText& text, const std::optional<std::string>& separator, int64_t limit) {
  std::vector<MarkedText> parts;
  const auto may_cut = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
  if (separator) {
    size_t begin = 0;
    for (size_t at; may_cut() && (at = text.text.find(*separator, begin)) != std::string::npos;
         begin = at + separator->size()) {
      parts.push_back(text.Part(begin, at - begin));
    }
    parts.push_back(text.Part(begin, text.text.size() - begin));
    return parts;
  }
  const std::vector<size_t> offsets = Offsets(text);
  const size_t size = offsets.size() - 1;
  const auto space = [&](size_t i) {
    return IsSpace(FirstCharacter(absl::string_view(text.text).substr(offsets[i])).code);
  };
  for (size_t i = 0; i < size;) {
    if (space(i)) {
      ++i;
      continue;
    }
    size_t end = i;
    if (!may_cut()) {
      parts.push_back(text.Part(offsets[i], text.text.size() - offsets[i]));
      break;
    }
    while (end < size && !space(end)) ++end;
    parts.push_back(text.Part(offsets[i], offsets[end] - offsets[i]));
    i = end;
  }
  return parts;
}

MarkedText Quoted(const MarkedText& text) {
  MarkedText quoted = MarkedText::Of("\"", false);
  for (size_t i = 0; i < text.text.size(); ++i) {
    const char c = text.text[i];
    std::string escaped(1, c);
    if (c == '"' || c == '\\') escaped = {'\\', c};
    constexpr absl::string_view kControls = "\b\t\n\f\r", kNames = "btnfr";
    if (const size_t name = kControls.find(c); name != absl::string_view::npos) {
      escaped = {'\\', kNames[name]};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      escaped = absl::StrFormat("\\u%04x", static_cast<unsigned>(c));
    }
    quoted.Append(MarkedText::Of(escaped, text.own[i] != 0));
  }
  quoted.Append(MarkedText::Of("\"", false));
  return quoted;
}

std::vector<size_t> SliceIndices(size_t size, std::optional<int64_t> begin, std::optional<int64_t> end, int64_t step) {
  const auto count = static_cast<int64_t>(size);
  const int64_t lower = step > 0 ? 0 : -1, upper = step > 0 ? count : count - 1;
  const auto clamp = [&](std::optional<int64_t> at, int64_t otherwise) {
    if (!at) return otherwise;
    return std::clamp(*at < 0 ? std::max(*at, -count - 1) + count : *at, lower, upper);
  };
  const int64_t from = clamp(begin, step > 0 ? lower : upper), to = clamp(end, step > 0 ? upper : lower);
  // Any longer stride leaves the sequence as well.
  const int64_t stride = std::clamp(step, -count - 1, count + 1);
  std::vector<size_t> indices;
  for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride) indices.push_back(static_cast<size_t>(i));
  return indices;
}

}  // namespace millrace::text::jinja
