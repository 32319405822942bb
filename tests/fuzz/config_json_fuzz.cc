// A config.json that parses must come back as it was written, and make a model or be refused.
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "model/formats/config_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto configuration = millrace::model::ParseConfig(bytes, "fuzz");
  if (!configuration.ok()) return 0;
  const std::string written = millrace::model::PrintConfig(*configuration);
  const auto again = millrace::model::ParseConfig(written, "written");
  if (!again.ok()) abort();
  if (again->spec.SerializeAsString() != configuration->spec.SerializeAsString()) abort();
  if (again->vocab_size != configuration->vocab_size || again->end_of_text != configuration->end_of_text) abort();
  if (millrace::model::PrintConfig(*again) != written) abort();
  return 0;
}
