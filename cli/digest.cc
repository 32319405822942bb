// millrace digest: one sum over all weights.
//
// SHA-256 over the tensors of model.safetensors in the order of their names; for each, the name's bytes, a zero byte,
// and the f32 data, little-endian (docs/formats.md).
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/checksum.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "coordinator/checkpoint_manifest.h"
#include "nlohmann/json.hpp"

namespace millrace::cli {
namespace {

struct Digest {
  std::string sha256;
  size_t tensors = 0;
  uint64_t parameters = 0;
};

absl::StatusOr<Digest> DigestOf(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/model.safetensors");
  std::error_code error;
  if (!std::filesystem::exists(path, error) && std::filesystem::exists(path + ".index.json", error)) {
    return absl::FailedPreconditionError(absl::StrCat(
        directory, " has its weights in several files; `millrace import` makes a model.safetensors of them"));
  }
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::vector<std::pair<std::string, absl::string_view>> tensors;
  for (const char* const name : {coordinator::kModelFile, coordinator::kAdapterFile}) {
    const std::string file = absl::StrCat(directory, "/", name);
    if (name == coordinator::kAdapterFile && !std::filesystem::exists(file, error)) continue;
    MILLRACE_ASSIGN_OR_RETURN(files.emplace_back(), SafetensorsFile::Open(file));
    for (const SafetensorsEntry& tensor : files.back()->header().tensors) {
      if (tensor.dtype != "F32") {
        return absl::FailedPreconditionError(absl::StrCat(file, ": tensor '", tensor.name, "' is ", tensor.dtype,
                                                          "; the digest is one of F32, which `millrace import` makes"));
      }
      tensors.emplace_back(tensor.name, files.back()->bytes(tensor));
    }
  }
  std::sort(tensors.begin(), tensors.end());
  Digest digest;
  digest.tensors = tensors.size();
  Sha256 sum;
  for (const auto& [name, bytes] : tensors) {
    sum.Update(name).Update(absl::string_view("\0", 1)).Update(bytes);
    digest.parameters += bytes.size() / sizeof(float);
  }
  digest.sha256 = sum.HexDigest();
  return digest;
}

}  // namespace

absl::Status RunDigest(Arguments arguments) {
  std::string checkpoint;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("digest", "Prints the SHA-256 over all tensors of a model, in the order of their names.",
              "runs/quickstart/model");
  flags.Positional("CHECKPOINT", "a model folder, or JOB, JOB@best, JOB@last, JOB@STEP", &checkpoint).Required();
  flags.Switch("json", "prints an object", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Find(checkpoint, where));
  MILLRACE_ASSIGN_OR_RETURN(const Digest digest, DigestOf(source.directory()));
  if (json) {
    const nlohmann::ordered_json result = {
        {"digest", digest.sha256}, {"tensors", digest.tensors}, {"parameters", digest.parameters}};
    std::printf("%s\n", result.dump(2).c_str());
  } else {
    std::printf("%s\n", digest.sha256.c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
