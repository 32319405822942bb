// A file of examples that parses can be read to its end, and keeps what its header promises.
#include <cstdint>
#include <cstdlib>

#include "text/example_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto file = millrace::text::ExampleFile::Parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  uint64_t tokens = 0, scored = 0;
  for (uint64_t i = 0; i < file->size(); ++i) {
    const auto record = (*file)[i];
    if (record.first != tokens || record.length > file->longest() || record.second > file->longest()) abort();
    tokens += uint64_t{record.length} + record.second;
    for (const char& byte : record.details) {
      if (&byte < bytes.data() || &byte >= bytes.data() + bytes.size()) abort();
    }
  }
  for (uint64_t i = 0; i < file->tokens(); ++i) {
    if (file->id(i) >= file->vocab_size()) abort();
    scored += file->is_scored(i);
  }
  if (tokens != file->tokens() || scored != file->scored()) abort();
  return 0;
}
