// A line gives an example that keeps its promises, or an error.
#include <cstdint>
#include <cstdlib>

#include "text/examples.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using millrace::text::ExampleKind;
  const absl::string_view line(reinterpret_cast<const char*>(data), size);
  for (const ExampleKind kind :
       {ExampleKind::kSft, ExampleKind::kPairs, ExampleKind::kLabelled, ExampleKind::kPrompts}) {
    auto example = millrace::text::ParseExample(kind, line);
    if (!example.ok()) continue;
    if (example->messages.empty()) abort();
    for (const auto& message : example->messages) {
      if (message.content.empty() || millrace::text::FirstInvalidUtf8(message.content)) abort();
      if (message.role != "system" && message.role != "user" && message.role != "assistant") abort();
    }
    if (kind == ExampleKind::kPairs && (example->response == example->rejected || !(example->margin >= 0))) abort();
    if (kind != ExampleKind::kSft && example->messages.back().role != "user") abort();
    if (millrace::text::Sha256OfExample(*example).size() != 64) abort();
  }
  return 0;
}
