// Makes readable text of tokens' bytes, which may end within a character.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace millrace::text {

// Takes bytes in pieces and gives well-formed UTF-8: a character that is not all there waits for its other bytes, so
// that it is given with the piece that completes it. A byte that is part of no character becomes U+FFFD. The pieces
// given are together the bytes taken, if those are well formed.
class ReadableText {
 public:
  // What has become readable; may be empty.
  std::string Add(absl::string_view bytes);
  // What waits for bytes that do not come any more.
  std::string Finish();

 private:
  std::string waiting_;  // the beginning of a character, at most three bytes
};

// Of bytes that nothing follows.
std::string ReadableTextOf(absl::string_view bytes);

// In quotation marks on one line, with line breaks and the like escaped as JSON has them.
std::string QuotedText(absl::string_view bytes);

}  // namespace millrace::text
