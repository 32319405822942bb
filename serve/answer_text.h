// Makes the text of an answer of its tokens' bytes: whole characters, up to a stop string.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "text/readable_text.h"

namespace millrace::serve {

// The text is cut before the stop string that is completed first, of those completed by the same byte before the
// longest; what could still become one is held back. Takes time in proportion to the bytes, whatever they are (Knuth,
// Morris, Pratt 1977).
class AnswerText {
 public:
  // Requires stops that are not empty.
  explicit AnswerText(const std::vector<std::string>& stops);

  // Takes a token's bytes and returns what has become readable, which may be nothing. Requires !stopped().
  std::string Add(absl::string_view bytes);
  // What is left once no more bytes come; nothing after a stop string.
  std::string Finish();

  // Whether a stop string is complete.
  bool stopped() const { return stopped_; }
  // Of the bytes taken, those that belong to the text for certain: all before a stop string or what may become one.
  size_t certain() const { return taken_ - held_.size(); }

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // of text's first i + 1 bytes, the longest proper prefix that they end with
    size_t matched = 0;            // the longest prefix of `text` that the bytes taken end with
  };

  std::vector<Stop> stops_;
  std::string held_;
  size_t taken_ = 0;  // after a stop string: without it and what follows
  bool stopped_ = false;
  text::ReadableText readable_;
};

}  // namespace millrace::serve
