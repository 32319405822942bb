// A token file that parses can be read to its end, and every id is below its vocabulary.
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "text/token_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = millrace::text::TokenFile::Parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!file.ok()) return 0;
  for (uint64_t i = 0; i < file->size(); ++i) {
    if ((*file)[i] >= file->vocab_size()) abort();
  }
  return 0;
}
