// A header that is accepted covers its data without gap or overlap, and what is laid out from it reads alike.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/string_view.h"
#include "common/safetensors.h"

namespace {

void Check(absl::string_view start, uint64_t file_bytes) {
  using millrace::ParseSafetensorsHeader;
  using millrace::SafetensorsHeader;
  const auto header = ParseSafetensorsHeader(start, file_bytes);
  if (!header.ok()) return;
  if (header->data_offset + header->data_bytes != file_bytes) abort();
  uint64_t next = 0;
  for (const millrace::SafetensorsEntry& entry : header->tensors) {
    uint64_t bytes = millrace::DtypeBytes(entry.dtype);
    for (const int64_t size : entry.shape) bytes *= static_cast<uint64_t>(size);
    if (entry.begin != next || entry.end != next + bytes || header->Find(entry.name) != &entry) abort();
    next = entry.end;
  }
  SafetensorsHeader copy = *header;
  const std::string written = millrace::LayOutSafetensors(&copy);
  const auto again = ParseSafetensorsHeader(written, written.size() + copy.data_bytes);
  if (!again.ok() || again->tensors.size() != header->tensors.size() || again->metadata != header->metadata) abort();
  for (size_t i = 0; i < again->tensors.size(); ++i) {
    const millrace::SafetensorsEntry &a = again->tensors[i], &b = header->tensors[i];
    if (a.name != b.name || a.dtype != b.dtype || a.shape != b.shape || a.begin != b.begin || a.end != b.end) abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes, size);
  // As of a larger file of which only the start is given, and of one that was cut short meanwhile.
  Check(bytes, size + 24);
  Check(bytes, size / 2);
  return 0;
}
