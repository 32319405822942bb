// HTML and Markdown of any kind give text; well-formed UTF-8 stays so.
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "text/markup.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto html = millrace::text::HtmlToText(bytes);
  if (!html.ok()) abort();
  const std::string markdown = millrace::text::MarkdownToText(bytes);
  if (!millrace::text::FirstInvalidUtf8(bytes) &&
      (millrace::text::FirstInvalidUtf8(*html) || millrace::text::FirstInvalidUtf8(markdown))) {
    abort();
  }
  return 0;
}
