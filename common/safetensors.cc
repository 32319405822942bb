#include "common/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

using Json = nlohmann::json;

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

// Follows a header as it is parsed and stops where a name occurs twice in an object (in the object that is made of it
// the second takes the first one's place) or something is nested deeper than any value that means something.
struct NameCheck : nlohmann::json_sax<Json> {
  std::vector<std::set<std::string>> open;  // the names in each object and array that is open
  std::string twice;

  bool Open() {
    open.emplace_back();
    return open.size() <= 4;
  }
  bool Close() {
    open.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    if (open.back().insert(name).second) return true;
    twice = name;
    return false;
  }
  bool start_object(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(); }
  bool end_array() override { return Close(); }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }
};

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
  // The header is written piece by piece: a JSON object that keeps its order looks each name up among all before it.
  const auto print = [](const nlohmann::ordered_json& json) {
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  };
  std::vector<std::string> members;
  if (!header->metadata.empty()) members.push_back(absl::StrCat("\"__metadata__\":", print(header->metadata)));
  header->data_bytes = 0;
  for (SafetensorsEntry& entry : header->tensors) {
    uint64_t bytes = DtypeBytes(entry.dtype);
    for (const int64_t size : entry.shape) bytes *= static_cast<uint64_t>(size);
    entry.begin = header->data_bytes;
    entry.end = header->data_bytes += bytes;
    members.push_back(absl::StrCat(
        print(entry.name), ":",
        print({{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}})));
  }
  std::string text = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  text.append((kAlignment - (8 + text.size()) % kAlignment) % kAlignment, ' ');
  const uint64_t length = text.size();
  header->data_offset = 8 + length;
  std::string start(8, '\0');
  std::memcpy(start.data(), &length, 8);
  return start + text;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view start, uint64_t file_bytes) {
  uint64_t length = 0;
  if (start.size() < 8 || file_bytes < 8) return absl::DataLossError("it is too short to be a safetensors file");
  std::memcpy(&length, start.data(), 8);
  if (length > kMaxSafetensorsHeaderBytes || length > std::min<uint64_t>(start.size(), file_bytes) - 8) {
    return absl::DataLossError(absl::StrCat("its header would have ", length, " bytes, the file has ", file_bytes));
  }
  const absl::string_view text = start.substr(8, length);
  NameCheck check;
  const bool sound = Json::sax_parse(text, &check);
  if (!check.twice.empty()) {
    return absl::DataLossError(absl::StrCat("in its header ", Quoted(check.twice), " occurs twice"));
  }
  const Json json = sound ? Json::parse(text, nullptr, /*allow_exceptions=*/false) : Json();
  if (!json.is_object()) return absl::DataLossError("its header is not a JSON object of tensors");
  if (json.size() > kMaxTensors) return absl::DataLossError("its header has too many tensors");
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return absl::DataLossError("its __metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) return absl::DataLossError("its __metadata__ has a value that is not text");
        header.metadata[key] = text.get<std::string>();
      }
      continue;
    }
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
