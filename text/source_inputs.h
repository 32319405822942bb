// Says what prepared data are a function of.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/job.pb.h"
#include "text/sources.h"

namespace millrace::text {

struct SourceInputs {
  std::vector<SourceFile> files;   // that can be read
  std::vector<std::string> skips;  // left out, and why
  // {"sources": [{"path", "format", "field", "sha256"}, …], "clean": {…}, "held_out": X, "split": {…}}
  nlohmann::ordered_json json;
};

// Finds the files of `data` (FindSources) and sums them up. INVALID_ARGUMENT for a held_out or split.order out of
// bounds; otherwise the errors of FindSources, and that of a file named by the job which cannot be read.
absl::StatusOr<SourceInputs> FindInputs(const v1::DataSpec& data, const std::string& base_dir);

// As it reads once it was written into a manifest: paths may hold any bytes, a manifest is UTF-8.
nlohmann::ordered_json AsWritten(const nlohmann::ordered_json& inputs);

// Of a file's bytes, packed or not, in hexadecimal digits.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

// Whether a document or record with this SHA-256, in hexadecimal digits, falls into the held-out share: by its first 64
// bits as a fraction of 1.
bool IsHeldOut(absl::string_view sha256, double held_out);

}  // namespace millrace::text
