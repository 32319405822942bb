// Takes the text out of HTML and Markdown.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::text {

inline constexpr size_t kMaxHtmlBytes = 64 << 20;

// The text of a page, parsed as browsers do (WHATWG HTML, by gumbo): scripts, styles, the head and other unseen
// elements go; paragraphs and headings are set apart by a blank line, other block elements and <br> by a newline; runs
// of white space become one space, except inside <pre>. RESOURCE_EXHAUSTED above kMaxHtmlBytes.
absl::StatusOr<std::string> HtmlToText(absl::string_view html);

// The text of a Markdown document (CommonMark's common ground, tables, front matter): marks of headings, emphasis,
// quotes, lists, links, images and code go, what they mark stays; link targets, rules, reference definitions, comments
// and HTML tags go. Line breaks stay as they are.
std::string MarkdownToText(absl::string_view markdown);

}  // namespace millrace::text
