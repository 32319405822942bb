#include "model/formats/weight_map.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace millrace::model {

std::string PrintWeightMap(const WeightMap& files, uint64_t total_bytes) {
  const nlohmann::ordered_json json = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", files}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<WeightMap> ParseWeightMap(absl::string_view text, absl::string_view file) {
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth < 8; };
  const nlohmann::json json = nlohmann::json::parse(text, shallow, /*allow_exceptions=*/false);
  const auto wrong = [&](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat(file, ": ", what)); };
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return wrong("weight_map is missing");
  }
  WeightMap files;
  for (const auto& [tensor, value] : json["weight_map"].items()) {
    if (!value.is_string()) return wrong(absl::StrCat("weight_map has no file name for '", tensor, "'"));
    const std::string name = value.get<std::string>();
    // A name, not a path to elsewhere.
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      return wrong(absl::StrCat("weight_map names a file outside the folder for '", tensor, "'"));
    }
    files[tensor] = name;
  }
  if (files.empty()) return wrong("weight_map is empty");
  return files;
}

}  // namespace millrace::model
