// A tokenizer.json that parses must encode and decode without a crash, and read back what it writes.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/string_view.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = millrace::text::ParseTokenizer(bytes, "fuzz");
  if (!tokenizer.ok()) return 0;
  const std::string text = "a the king's\n\n 12 é <|endoftext|>";
  const auto ids = (*tokenizer)->Encode(text);
  if (ids.ok() && (*tokenizer)->Decode(*ids) != text) abort();
  const auto again = millrace::text::ParseTokenizer((*tokenizer)->ToJson(), "written");
  if (!again.ok()) abort();
  const auto ids_again = (*again)->Encode(text);
  if (ids.ok() != ids_again.ok() || (ids.ok() && *ids != *ids_again)) abort();
  return 0;
}
