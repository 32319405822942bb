#include "model/formats/hugging_face.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "model/families/encoder.h"
#include "model/formats/tensor_values.h"
#include "model/formats/weight_map.h"
#include "text/new_file.h"

namespace millrace::model {
namespace {

constexpr char kConfigFile[] = "config.json";
constexpr char kWeightsFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxIndexBytes = 64 << 20;
constexpr int64_t kBufferedValues = 1 << 18;

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

// An encoder's output projection, which is always tied.
constexpr char kEncoderHead[] = "cls.predictions.decoder.weight";

// Buffers that some files carry and no model learns, and tensors that are tied to others.
bool HoldsNoParameters(const TensorList& tensors, absl::string_view name) {
  return absl::EndsWith(name, ".attn.bias") || absl::EndsWith(name, ".attn.masked_bias") ||
         absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (name == "lm_head.weight" && tensors.Find("lm_head.weight") < 0) || name == "bert.embeddings.position_ids" ||
         name == kEncoderHead || name == "cls.predictions.decoder.bias";
}

// Names of the files that hold the weights, and which holds what if there is an index.
struct WeightFiles {
  std::vector<std::string> names;
  WeightMap map;  // empty without an index
};

absl::StatusOr<WeightFiles> FindWeights(const std::string& directory) {
  const std::string index_path = absl::StrCat(directory, "/", kIndexFile);
  const absl::StatusOr<std::string> index = ReadFile(index_path, kMaxIndexBytes);
  WeightFiles files;
  if (index.ok()) {
    MILLRACE_ASSIGN_OR_RETURN(files.map, ParseWeightMap(*index, index_path));
    std::set<std::string> names;
    for (const auto& [tensor, name] : files.map) names.insert(name);
    files.names.assign(names.begin(), names.end());
    return files;
  }
  if (!absl::IsNotFound(index.status())) return index.status();
  files.names = {kWeightsFile};
  std::error_code error;
  if (std::filesystem::exists(absl::StrCat(directory, "/", kWeightsFile), error)) return files;
  for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (!std::filesystem::exists(absl::StrCat(directory, "/", pickle), error)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(directory, "/", pickle, ": pickled weights are not read, for they may run any program; load and ",
                     "save_pretrained() the model in transformers, which writes ", kWeightsFile));
  }
  return files;
}

// A tied model's output projection, if it is stored beside the embedding.
struct StoredHead {
  bool stored = false;
  bool differs = false;
};

absl::StatusOr<StoredHead> FindHead(const std::string& directory) {
  MILLRACE_ASSIGN_OR_RETURN(const WeightFiles files, FindWeights(directory));
  std::vector<std::unique_ptr<SafetensorsFile>> open;
  struct Place {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  } head, embedding;
  for (const std::string& name : files.names) {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                              SafetensorsFile::Open(absl::StrCat(directory, "/", name)));
    for (const SafetensorsEntry& entry : file->header().tensors) {
      if (entry.name == "lm_head.weight" || entry.name == kEncoderHead) head = {file.get(), &entry};
      if (absl::EndsWith(absl::StrCat(".", entry.name), ".wte.weight") ||
          absl::EndsWith(absl::StrCat(".", entry.name), ".embed_tokens.weight") ||
          absl::EndsWith(entry.name, ".word_embeddings.weight")) {
        embedding = {file.get(), &entry};
      }
    }
    open.push_back(std::move(file));
  }
  StoredHead result;
  result.stored = head.entry != nullptr;
  result.differs = result.stored && embedding.entry != nullptr &&
                   (head.entry->dtype != embedding.entry->dtype ||
                    head.file->bytes(*head.entry) != embedding.file->bytes(*embedding.entry));
  return result;
}

absl::Status ReadFileOfWeights(const std::string& directory, const std::string& name, const WeightMap& map,
                               const TensorList& tensors, float* memory, std::set<int>* found) {
  const std::string path = absl::StrCat(directory, "/", name);
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
    if (!map.empty()) {
      const auto expected = map.find(entry.name);
      if (expected == map.end()) return wrong(absl::StrCat("is not in ", kIndexFile));
      if (expected->second != name) {
        return wrong(absl::StrCat("lies here where ", kIndexFile, " says ", expected->second));
      }
    }
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

// Tensors [begin, end) of the list.
absl::Status WriteFileOfWeights(const std::string& path, const TensorList& tensors, int begin, int end, Dtype dtype,
                                const float* memory) {
  SafetensorsHeader header;
  header.metadata["format"] = "pt";  // transformers asks for it
  for (int i = begin; i < end; ++i) {
    SafetensorsEntry entry;
    entry.name = tensors[i].name;
    entry.dtype = dtype == Dtype::kF16 ? "F16" : dtype == Dtype::kBf16 ? "BF16" : "F32";
    entry.shape = tensors[i].shape;
    header.tensors.push_back(std::move(entry));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::NewFile> file, text::NewFile::Create(path));
  MILLRACE_RETURN_IF_ERROR(file->Append(LayOutSafetensors(&header)));
  std::string bytes;
  for (int i = begin; i < end; ++i) {
    for (int64_t at = 0; at < tensors[i].size; at += kBufferedValues) {
      bytes.clear();
      const auto count = static_cast<size_t>(std::min(kBufferedValues, tensors[i].size - at));
      const absl::Status stored = AppendStored(dtype, {memory + tensors[i].offset + at, count}, &bytes);
      if (!stored.ok()) return Annotate(stored, absl::StrCat("tensor '", tensors[i].name, "' from element ", at));
      MILLRACE_RETURN_IF_ERROR(file->Append(bytes));
    }
  }
  return file->Commit();
}

}  // namespace

absl::StatusOr<Configuration> ReadConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kConfigFile);
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kMaxConfigBytes));
  MILLRACE_ASSIGN_OR_RETURN(Configuration configuration, ParseConfig(json, path));
  if (configuration.head == Head::kLanguage && configuration.spec.tied_embeddings()) {
    // What is wrong with the files is for ReadWeights to say.
    const absl::StatusOr<StoredHead> head = FindHead(directory);
    if (head.ok() && head->differs) configuration.spec.set_tied_embeddings(false);
  }
  return configuration;
}

absl::Status ReadWeights(const std::string& directory, const TensorList& tensors, float* memory) {
  MILLRACE_ASSIGN_OR_RETURN(const WeightFiles files, FindWeights(directory));
  std::set<int> found;
  for (const std::string& name : files.names) {
    MILLRACE_RETURN_IF_ERROR(ReadFileOfWeights(directory, name, files.map, tensors, memory, &found));
  }
  for (int i = 0; i < tensors.size(); ++i) {
    if (!found.contains(i)) {
      return absl::InvalidArgumentError(absl::StrCat(directory, "/", files.map.empty() ? kWeightsFile : kIndexFile,
                                                     ": tensor '", tensors[i].name, "' is missing"));
    }
  }
  if (tensors.Find("lm_head.weight") >= 0 || tensors.Find("score.weight") >= 0) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(const StoredHead head, FindHead(directory));
  if (!head.differs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(directory, ": tensor '", tensors.Find("cls.predictions.bias") >= 0 ? kEncoderHead : "lm_head.weight",
                   "' differs from the embedding, to which this model ties it"));
}

absl::Status WriteModel(const std::string& directory, const Configuration& configuration, const TensorList& tensors,
                        const float* memory, uint64_t max_file_bytes) {
  const Dtype dtype = configuration.dtype;
  if (dtype == Dtype::kQ8_0) return absl::InvalidArgumentError("safetensors of this layout store f32, f16 or bf16");
  // Where each file begins, and where the last one ends.
  std::vector<int> begins = {0};
  uint64_t total_bytes = 0, of_file = 0;
  for (int i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = StoredBytes(dtype, tensors[i].size);
    if (i > begins.back() && of_file + bytes > max_file_bytes) {
      begins.push_back(i);
      of_file = 0;
    }
    of_file += bytes;
    total_bytes += bytes;
  }
  const size_t files = begins.size();
  begins.push_back(tensors.size());
  WeightMap map;
  for (size_t i = 0; i < files; ++i) {
    const std::string name =
        files == 1 ? kWeightsFile : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files);
    for (int tensor = begins[i]; tensor < begins[i + 1]; ++tensor) map[tensors[tensor].name] = name;
    MILLRACE_RETURN_IF_ERROR(
        WriteFileOfWeights(absl::StrCat(directory, "/", name), tensors, begins[i], begins[i + 1], dtype, memory));
  }
  if (files > 1) {
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(directory, "/", kIndexFile), PrintWeightMap(map, total_bytes)));
  }
  if (configuration.head == Head::kLanguage && !IsEncoder(configuration.spec.family())) {
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(directory, "/generation_config.json"), PrintGenerationConfig(configuration)));
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kConfigFile), PrintConfig(configuration));
}

}  // namespace millrace::model
