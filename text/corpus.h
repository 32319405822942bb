// Reads source files into documents.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "text/sources.h"

namespace millrace::text {

// A text, Markdown or HTML file, or one line of JSON Lines, may not be longer than this once unpacked; a text file that
// is cut into windows may have any length.
inline constexpr uint64_t kMaxDocumentBytes = uint64_t{1} << 30;

struct CorpusOptions {
  bool strip_markup = true;
  // Files longer than this are cut into documents (CutParagraphs); 0: a file is one document.
  uint64_t window_bytes = 0;
};

struct CorpusSink {
  // A document that is well-formed UTF-8 and not empty, not yet cleaned but for markup.
  std::function<absl::Status(absl::string_view text)> document;
  // Something left out, and why, with the file's name.
  std::function<void(std::string why)> skip;
};

// Gives every document of the file to the sink, in order. A document that is not UTF-8, empty, or a line that is not
// JSON or lacks the field, is skipped. Errors: the file cannot be read or unpacked, or a document is too long.
absl::Status ReadDocuments(const SourceFile& file, const CorpusOptions& options, const CorpusSink& sink);

// Gives every line of a JSON Lines file that is not blank, without its end, and its number from 1 to `line`. A line
// that is not UTF-8, and a file without lines, go to `skip`. Errors as ReadDocuments.
using LineSink = std::function<absl::Status(absl::string_view line, uint64_t number)>;
absl::Status ReadLines(const SourceFile& file, const LineSink& line, const std::function<void(std::string)>& skip);

// The JSON Lines rule for one line: the string at `field`, dots reaching into objects. INVALID_ARGUMENT saying what is
// wrong.
absl::StatusOr<std::string> FieldOfJsonLine(absl::string_view line, absl::string_view field);

// Cuts a long text into documents at the ends of paragraphs, as it comes in.
//
// A document ends at the first end of a paragraph (a newline, then a run of blank lines) at which it holds at least
// `window` bytes; if there is none before it holds 4 windows, at the next newline; if there is none before 8 windows,
// at the next start of a UTF-8 character. What is left at the end is a document too. The documents together are the
// text.
class ParagraphCutter {
 public:
  // Gives a document and its offset in the text.
  using Sink = std::function<absl::Status(absl::string_view document, uint64_t offset)>;
  ParagraphCutter(uint64_t window, Sink sink) : window_(window), sink_(std::move(sink)) {}
  absl::Status Add(absl::string_view bytes);
  absl::Status Finish();

 private:
  absl::Status Emit(size_t size);

  const uint64_t window_;
  const Sink sink_;
  std::string pending_;
  size_t scanned_ = 0;   // bytes of pending_ looked at
  uint64_t offset_ = 0;  // of pending_ in the text
};

}  // namespace millrace::text
