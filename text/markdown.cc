// Markdown to text, line by line and then mark by mark. It is no parser of all of CommonMark: nesting rules that do not
// change which characters are text are left out.
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "text/markup.h"

namespace millrace::text {
namespace {

constexpr size_t kMaxSpan = 4096;  // how far the end of a link, tag or code span is looked for

bool IsPunctuation(char c) { return absl::ascii_ispunct(static_cast<unsigned char>(c)); }
bool IsSpace(char c) { return absl::ascii_isspace(static_cast<unsigned char>(c)); }
bool IsWordByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || static_cast<unsigned char>(c) >= 0x80;
}

struct Entity {
  absl::string_view name;
  absl::string_view text;
};
constexpr Entity kEntities[] = {{"&amp;", "&"},   {"&lt;", "<"},    {"&gt;", ">"},          {"&quot;", "\""},
                                {"&#39;", "'"},   {"&apos;", "'"},  {"&nbsp;", "\xC2\xA0"}, {"&mdash;", "—"},
                                {"&ndash;", "–"}, {"&hellip;", "…"}};

// Offset of the bracket that closes the one at `open`; npos if none is near.
size_t Closing(absl::string_view text, size_t open, char opening, char closing) {
  int depth = 0;
  const size_t end = std::min(text.size(), open + kMaxSpan);
  for (size_t i = open; i < end; ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == opening) {
      ++depth;
    } else if (text[i] == closing && --depth == 0) {
      return i;
    }
  }
  return absl::string_view::npos;
}

// Takes the marks out of running text. `depth` bounds links inside links.
void Inline(absl::string_view text, int depth, std::string* out) {
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\\' && i + 1 < text.size() && IsPunctuation(text[i + 1])) {
      out->push_back(text[i + 1]);
      i += 2;
      continue;
    }
    if (c == '`') {
      size_t ticks = 1;
      while (i + ticks < text.size() && text[i + ticks] == '`') ++ticks;
      const absl::string_view fence = text.substr(i, ticks);
      const size_t begin = i + ticks;
      size_t end = begin;
      for (;;) {  // a run of exactly as many ticks
        end = text.substr(0, std::min(text.size(), begin + kMaxSpan)).find(fence, end);
        if (end == absl::string_view::npos) break;
        size_t run = ticks;
        while (end + run < text.size() && text[end + run] == '`') ++run;
        if (run == ticks) break;
        end += run;
      }
      if (end != absl::string_view::npos) {
        absl::string_view code = text.substr(begin, end - begin);
        if (code.size() > 2 && code.front() == ' ' && code.back() == ' ') code = code.substr(1, code.size() - 2);
        absl::StrAppend(out, code);
        i = end + ticks;
      } else {
        absl::StrAppend(out, fence);
        i += ticks;
      }
      continue;
    }
    const bool image = c == '!' && i + 1 < text.size() && text[i + 1] == '[';
    if ((c == '[' || image) && depth < 8) {
      const size_t open = i + image;
      const size_t close = Closing(text, open, '[', ']');
      if (close != absl::string_view::npos) {
        size_t end = absl::string_view::npos;
        if (close + 1 < text.size() && text[close + 1] == '(') end = Closing(text, close + 1, '(', ')');
        if (close + 1 < text.size() && text[close + 1] == '[') end = Closing(text, close + 1, '[', ']');
        if (end != absl::string_view::npos) {
          Inline(text.substr(open + 1, close - open - 1), depth + 1, out);
          i = end + 1;
          continue;
        }
      }
    }
    if (c == '<' && i + 1 < text.size()) {
      const char next = text[i + 1];
      const size_t close = text.substr(0, std::min(text.size(), i + kMaxSpan)).find('>', i);
      if (close != absl::string_view::npos && (absl::ascii_isalpha(static_cast<unsigned char>(next)) || next == '/')) {
        const absl::string_view inside = text.substr(i + 1, close - i - 1);
        if (inside.find_first_of(" \n\t") == absl::string_view::npos &&
            (absl::StrContains(inside, "://") || absl::StartsWith(inside, "mailto:") ||
             absl::StrContains(inside, "@"))) {
          absl::StrAppend(out, inside);  // <https://…>
        }
        i = close + 1;
        continue;
      }
    }
    if (c == '*' || c == '_' || (c == '~' && i + 1 < text.size() && text[i + 1] == '~')) {
      size_t run = 1;
      while (i + run < text.size() && text[i + run] == c) ++run;
      const char before = i > 0 ? text[i - 1] : ' ';
      const char after = i + run < text.size() ? text[i + run] : ' ';
      const bool lone = IsSpace(before) && IsSpace(after);
      const bool inside_word = c == '_' && IsWordByte(before) && IsWordByte(after);
      if (lone || inside_word) absl::StrAppend(out, text.substr(i, run));
      i += run;
      continue;
    }
    if (c == '&') {
      bool known = false;
      for (const Entity& entity : kEntities) {
        if (!absl::StartsWith(text.substr(i), entity.name)) continue;
        absl::StrAppend(out, entity.text);
        i += entity.name.size();
        known = true;
        break;
      }
      if (known) continue;
    }
    out->push_back(c);
    ++i;
  }
}

// The fence that opens or closes a code block: its character and length; 0 if the line is none.
struct Fence {
  char mark = 0;
  size_t length = 0;
};
Fence FenceOf(absl::string_view line) {
  line = absl::StripLeadingAsciiWhitespace(line);
  if (!absl::StartsWith(line, "```") && !absl::StartsWith(line, "~~~")) return {};
  const size_t end = line.find_first_not_of(line[0]);
  return {line[0], end == absl::string_view::npos ? line.size() : end};
}

// ---, ***, ===, | --- | :---: |
bool IsRule(absl::string_view line) {
  line = absl::StripAsciiWhitespace(line);
  return line.size() >= 3 && line.find_first_not_of("-*_= |:\t+") == absl::string_view::npos &&
         line.find_first_of("-*_=") != absl::string_view::npos &&
         (absl::StrContains(line, "--") || absl::StrContains(line, "==") || absl::StrContains(line, "**") ||
          absl::StrContains(line, "__") || absl::StrContains(line, "* *") || absl::StrContains(line, "- -") ||
          absl::StrContains(line, "_ _"));
}

// [name]: target
bool IsDefinition(absl::string_view line) {
  line = absl::StripLeadingAsciiWhitespace(line);
  if (!absl::StartsWith(line, "[")) return false;
  const size_t close = Closing(line, 0, '[', ']');
  return close != absl::string_view::npos && close > 1 && line[1] != '^' && close + 1 < line.size() &&
         line[close + 1] == ':';
}

// What is left of a line without the marks of its block.
absl::string_view WithoutBlockMarks(absl::string_view line) {
  absl::string_view rest = absl::StripLeadingAsciiWhitespace(line);
  bool marked = false;
  while (absl::ConsumePrefix(&rest, ">")) {
    rest = absl::StripLeadingAsciiWhitespace(rest);
    marked = true;
  }
  if (rest.size() >= 2 && (rest[0] == '-' || rest[0] == '*' || rest[0] == '+') && IsSpace(rest[1])) {
    rest = absl::StripLeadingAsciiWhitespace(rest.substr(1));
    marked = true;
    if (absl::StartsWith(rest, "[ ] ") || absl::StartsWith(rest, "[x] ") || absl::StartsWith(rest, "[X] "))
      rest.remove_prefix(4);
  } else if (const size_t digits = rest.find_first_not_of("0123456789");
             digits != absl::string_view::npos && digits > 0 && digits <= 9 && digits + 1 < rest.size() &&
             (rest[digits] == '.' || rest[digits] == ')') && IsSpace(rest[digits + 1])) {
    rest = absl::StripLeadingAsciiWhitespace(rest.substr(digits + 1));
    marked = true;
  }
  const size_t hashes = rest.find_first_not_of('#');
  if (absl::StartsWith(rest, "#") && (hashes == absl::string_view::npos || (hashes <= 6 && IsSpace(rest[hashes])))) {
    rest = hashes == absl::string_view::npos ? "" : absl::StripAsciiWhitespace(rest.substr(hashes));
    // A closing run of # goes too, if a space is before it.
    absl::string_view closed = rest;
    while (absl::ConsumeSuffix(&closed, "#")) {
    }
    if (closed.empty() || IsSpace(closed.back())) rest = absl::StripTrailingAsciiWhitespace(closed);
    marked = true;
  }
  return marked ? rest : line;
}

std::string WithoutComments(absl::string_view text) {
  std::string out;
  for (;;) {
    const size_t begin = text.find("<!--");
    const size_t end = begin == absl::string_view::npos ? begin : text.find("-->", begin + 4);
    if (end == absl::string_view::npos) break;
    absl::StrAppend(&out, text.substr(0, begin));
    text.remove_prefix(end + 3);
  }
  absl::StrAppend(&out, text);
  return out;
}

}  // namespace

std::string MarkdownToText(absl::string_view markdown) {
  const std::string without_comments = WithoutComments(markdown);
  absl::string_view rest = without_comments;
  std::string out;
  std::string paragraph;  // running text whose marks may span lines
  const auto end_paragraph = [&] {
    Inline(paragraph, 0, &out);
    paragraph.clear();
  };
  Fence fence;
  bool first = true;
  bool front_matter = false;
  while (!rest.empty()) {
    const size_t newline = rest.find('\n');
    absl::string_view line = rest.substr(0, newline);
    const bool ended = newline != absl::string_view::npos;
    rest.remove_prefix(ended ? newline + 1 : rest.size());
    absl::ConsumeSuffix(&line, "\r");
    const absl::string_view end = ended ? "\n" : "";

    if (first) front_matter = line == "---" && (absl::StrContains(rest, "\n---\n") || absl::EndsWith(rest, "\n---"));
    if (front_matter) {
      if (!first && line == "---") front_matter = false;
      first = false;
      continue;
    }
    first = false;
    const Fence here = FenceOf(line);
    if (fence.mark != 0) {
      if (here.mark == fence.mark && here.length >= fence.length) {
        fence = {};
      } else {
        absl::StrAppend(&out, line);
        absl::StrAppend(&out, end);
      }
      continue;
    }
    if (here.mark != 0) {
      end_paragraph();
      fence = here;
      continue;
    }
    if (line.find_first_not_of(" \t") == absl::string_view::npos) {
      end_paragraph();
      absl::StrAppend(&out, end);
      continue;
    }
    if (IsRule(line) || IsDefinition(line)) {
      end_paragraph();
      continue;
    }
    if (absl::StartsWith(line, "    ") && paragraph.empty()) {  // indented code
      absl::StrAppend(&out, line.substr(4));
      absl::StrAppend(&out, end);
      continue;
    }
    absl::string_view content = WithoutBlockMarks(line);
    if (content.size() != line.size() || content.data() != line.data()) end_paragraph();
    if (absl::StartsWith(content, "|")) {  // a table's row
      std::string row;
      for (const char c : absl::StripAsciiWhitespace(content)) {
        if (c != '|' && c != ' ') {
          row.push_back(c);
        } else if (!row.empty() && row.back() != ' ') {
          row.push_back(' ');
        }
      }
      end_paragraph();
      Inline(absl::StripAsciiWhitespace(row), 0, &out);
      absl::StrAppend(&out, end);
      continue;
    }
    absl::StrAppend(&paragraph, content);
    absl::StrAppend(&paragraph, end);
  }
  end_paragraph();
  return out;
}

}  // namespace millrace::text
