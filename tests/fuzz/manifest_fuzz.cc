// A checkpoint's manifest: any bytes give a manifest or an error, and what was read prints to what reads alike.
#include <cstdint>
#include <cstdlib>

#include "coordinator/checkpoint_manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using millrace::coordinator::ParseManifest;
  const auto manifest = ParseManifest(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!manifest.ok()) return 0;
  const auto again = ParseManifest(PrintManifest(*manifest));
  if (!again.ok() || !(*again == *manifest)) std::abort();
  return 0;
}
