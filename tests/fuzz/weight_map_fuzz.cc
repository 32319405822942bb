// A model.safetensors.index.json that parses must come back as it was written.
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "model/formats/weight_map.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto files = millrace::model::ParseWeightMap(bytes, "fuzz");
  if (!files.ok()) return 0;
  const auto again = millrace::model::ParseWeightMap(millrace::model::PrintWeightMap(*files, size), "written");
  if (!again.ok() || *again != *files) abort();
  return 0;
}
