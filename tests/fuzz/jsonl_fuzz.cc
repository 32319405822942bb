// A line gives the string at the field or an error; the cutter gives back its text, whole.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "text/corpus.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const char* field : {"text", "meta.body"}) {
    const auto text = millrace::text::FieldOfJsonLine(bytes, field);
    if (text.ok() && millrace::text::FirstInvalidUtf8(*text)) abort();
  }
  std::string joined;
  millrace::text::ParagraphCutter cutter(16, [&joined](absl::string_view document, uint64_t offset) {
    if (offset != joined.size() || document.empty()) abort();
    absl::StrAppend(&joined, document);
    return absl::OkStatus();
  });
  if (!cutter.Add(bytes.substr(0, size / 3)).ok() || !cutter.Add(bytes.substr(size / 3)).ok() || !cutter.Finish().ok())
    abort();
  if (joined != bytes) abort();
  return 0;
}
