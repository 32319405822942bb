#include "model/formats/hugging_face.h"

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "model/formats/tensor_values.h"
#include "nlohmann/json.hpp"

namespace millrace::model {
namespace {

constexpr char kConfigFile[] = "config.json";
constexpr char kWeightsFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxIndexBytes = 64 << 20;

// The tensor of the list that a file's name means; -1: none.
int FindTensor(const TensorList& tensors, absl::string_view name) {
  const int exact = tensors.Find(name);
  if (exact >= 0) return exact;
  for (const char* prefix : {"transformer.", "model."}) {
    const int longer = tensors.Find(absl::StrCat(prefix, name));
    if (longer >= 0) return longer;
    if (absl::StartsWith(name, prefix)) {
      const int shorter = tensors.Find(absl::StripPrefix(name, prefix));
      if (shorter >= 0) return shorter;
    }
  }
  return -1;
}

// Buffers that some files carry and no model learns.
bool HoldsNoParameters(const TensorList& tensors, absl::string_view name) {
  return absl::EndsWith(name, ".attn.bias") || absl::EndsWith(name, ".attn.masked_bias") ||
         absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (name == "lm_head.weight" && tensors.Find("lm_head.weight") < 0);
}

absl::Status ReadFileOfWeights(const std::string& path, const TensorList& tensors, float* memory,
                               std::set<int>* found) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const SafetensorsEntry& entry : file->header().tensors) {
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor '", entry.name, "' ", what));
    };
    const int index = FindTensor(tensors, entry.name);
    if (index < 0) {
      if (HoldsNoParameters(tensors, entry.name)) continue;
      return wrong("is not one of this architecture's");
    }
    const TensorSpec& spec = tensors[index];
    if (!found->insert(index).second) return wrong("occurs twice");
    if (entry.shape != spec.shape) {
      return wrong(absl::StrCat("has shape [", absl::StrJoin(entry.shape, ", "),
                                "] where config.json's architecture has [", absl::StrJoin(spec.shape, ", "), "]"));
    }
    if (absl::Status read = ReadValues(entry, file->bytes(entry), memory + spec.offset); !read.ok()) {
      return wrong(read.message());
    }
  }
  return absl::OkStatus();
}

// Names of the files that hold the weights.
absl::StatusOr<std::vector<std::string>> WeightFiles(const std::string& directory) {
  const std::string index_path = absl::StrCat(directory, "/", kIndexFile);
  const absl::StatusOr<std::string> index = ReadFile(index_path, kMaxIndexBytes);
  if (absl::IsNotFound(index.status())) return std::vector<std::string>{kWeightsFile};
  MILLRACE_RETURN_IF_ERROR(index.status());
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth < 8; };
  const nlohmann::json json = nlohmann::json::parse(*index, shallow, /*allow_exceptions=*/false);
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", what));
  };
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return wrong("weight_map is missing");
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string()) return wrong(absl::StrCat("weight_map has no file name for '", tensor, "'"));
    const std::string name = file.get<std::string>();
    // A name, not a path to elsewhere.
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      return wrong(absl::StrCat("weight_map names a file outside the folder for '", tensor, "'"));
    }
    names.insert(name);
  }
  if (names.empty()) return wrong("weight_map is empty");
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace

absl::StatusOr<Configuration> ReadConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kConfigFile);
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kMaxConfigBytes));
  return ParseConfig(json, path);
}

absl::Status ReadWeights(const std::string& directory, const TensorList& tensors, float* memory) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::string> files, WeightFiles(directory));
  std::set<int> found;
  for (const std::string& file : files) {
    MILLRACE_RETURN_IF_ERROR(ReadFileOfWeights(absl::StrCat(directory, "/", file), tensors, memory, &found));
  }
  for (int i = 0; i < tensors.size(); ++i) {
    if (!found.contains(i)) {
      return absl::InvalidArgumentError(absl::StrCat(directory, "/", files.size() == 1 ? files[0] : kIndexFile,
                                                     ": tensor '", tensors[i].name, "' is missing"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteModel(const std::string& directory, const Configuration& configuration, const TensorList& tensors,
                        const float* memory) {
  SafetensorsHeader header;
  header.metadata["format"] = "pt";  // transformers asks for it
  for (const TensorSpec& spec : tensors.tensors()) {
    SafetensorsEntry entry;
    entry.name = spec.name;
    entry.dtype = "F32";
    entry.shape = spec.shape;
    header.tensors.push_back(std::move(entry));
  }
  std::string bytes = LayOutSafetensors(&header);
  bytes.reserve(header.data_offset + header.data_bytes);
  for (const TensorSpec& spec : tensors.tensors()) {
    bytes.append(reinterpret_cast<const char*>(memory + spec.offset), static_cast<size_t>(spec.size) * sizeof(float));
  }
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/", kWeightsFile), bytes));
  if (configuration.head == Head::kLanguage) {
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(directory, "/generation_config.json"), PrintGenerationConfig(configuration)));
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kConfigFile), PrintConfig(configuration));
}

}  // namespace millrace::model
