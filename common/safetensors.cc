#include "common/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxTensors = 1 << 20;
constexpr size_t kMaxDimensions = 8;
constexpr uint64_t kAlignment = 64;

std::string Quoted(absl::string_view name) { return absl::StrCat("'", absl::Utf8SafeCEscape(name.substr(0, 200)), "'"); }

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const Json& json) {
  const auto wrong = [&name](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("tensor ", Quoted(name), ": ", what));
  };
  if (!json.is_object() || !json.contains("dtype") || !json["dtype"].is_string() || !json.contains("shape") ||
      !json["shape"].is_array() || !json.contains("data_offsets") || !json["data_offsets"].is_array()) {
    return wrong("its header has no dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = json["dtype"].get<std::string>();
  uint64_t bytes = DtypeBytes(entry.dtype);
  if (bytes == 0) return wrong(absl::StrCat("dtype ", Quoted(entry.dtype), " is not known"));
  if (json["shape"].size() > kMaxDimensions) return wrong("it has too many dimensions");
  for (const Json& size : json["shape"]) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{1} << 48) return wrong("its shape is no shape");
    entry.shape.push_back(size.get<int64_t>());
    if (__builtin_mul_overflow(bytes, size.get<uint64_t>(), &bytes)) return wrong("its shape is too large");
  }
  const Json& offsets = json["data_offsets"];
  if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    return wrong("its data_offsets are not two numbers");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    return wrong(absl::StrCat("its data_offsets have not the ", bytes, " bytes of its shape"));
  }
  return entry;
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::Find(absl::string_view name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [name](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

uint64_t DtypeBytes(absl::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E5M2" || dtype == "F8_E4M3") return 1;
  return 0;
}

std::string LayOutSafetensors(SafetensorsHeader* header) {
  Json json = Json::object();
  if (!header->metadata.empty()) json["__metadata__"] = header->metadata;
  header->data_bytes = 0;
  for (SafetensorsEntry& entry : header->tensors) {
    uint64_t bytes = DtypeBytes(entry.dtype);
    for (const int64_t size : entry.shape) bytes *= static_cast<uint64_t>(size);
    entry.begin = header->data_bytes;
    entry.end = header->data_bytes += bytes;
    json[entry.name] = {{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.append((kAlignment - (8 + text.size()) % kAlignment) % kAlignment, ' ');
  const uint64_t length = text.size();
  header->data_offset = 8 + length;
  std::string start(8, '\0');
  std::memcpy(start.data(), &length, 8);
  return start + text;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view start, uint64_t file_bytes) {
  uint64_t length = 0;
  if (start.size() < 8) return absl::DataLossError("it is too short to be a safetensors file");
  std::memcpy(&length, start.data(), 8);
  if (length > kMaxSafetensorsHeaderBytes || length > start.size() - 8) {
    return absl::DataLossError(absl::StrCat("its header would have ", length, " bytes, the file has ", file_bytes));
  }
  int depth_seen = 0;
  // Nothing in the header is nested deeper than a tensor's shape; a deeper one could exhaust the stack.
  const auto bounded = [&depth_seen](int depth, Json::parse_event_t event, Json&) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      depth_seen = std::max(depth_seen, depth);
    }
    return depth <= 4;
  };
  const Json json = Json::parse(start.substr(8, length), bounded, /*allow_exceptions=*/false);
  if (!json.is_object() || depth_seen > 4) return absl::DataLossError("its header is not a JSON object");
  if (json.size() > kMaxTensors) return absl::DataLossError("its header has too many tensors");
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  std::set<std::string> names;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return absl::DataLossError("its __metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) return absl::DataLossError("its __metadata__ has a value that is not text");
        header.metadata[key] = text.get<std::string>();
      }
      continue;
    }
    if (!names.insert(name).second) return absl::DataLossError(absl::StrCat("tensor ", Quoted(name), " occurs twice"));
    MILLRACE_ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(name, value));
    header.tensors.push_back(std::move(entry));
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  for (const SafetensorsEntry& entry : header.tensors) {
    if (entry.begin != header.data_bytes) {
      return absl::DataLossError(absl::StrCat("tensor ", Quoted(entry.name), " starts at ", entry.begin, " where ",
                                              header.data_bytes, " is next"));
    }
    header.data_bytes = entry.end;
    if (header.data_bytes > file_bytes - header.data_offset) {
      return absl::DataLossError(absl::StrCat("the file ends within tensor ", Quoted(entry.name), ": it has ",
                                              file_bytes - header.data_offset, " bytes of data, the tensor ends at ",
                                              entry.end));
    }
  }
  if (header.data_bytes != file_bytes - header.data_offset) {
    return absl::DataLossError(absl::StrCat(file_bytes - header.data_offset - header.data_bytes,
                                            " bytes follow the last tensor"));
  }
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(file.bytes(), file.bytes().size());
  if (!header.ok()) return Annotate(header.status(), path);
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(std::move(file), *std::move(header)));
}

}  // namespace millrace
