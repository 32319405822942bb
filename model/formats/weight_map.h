// Writes and reads model.safetensors.index.json, which says in which file of a folder each tensor lies.
//
//   {"metadata": {"total_size": BYTES},                            of all tensors' data; transformers wants it
//    "weight_map": {TENSOR: "model-00001-of-00002.safetensors", …}}
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::model {

using WeightMap = std::map<std::string, std::string>;  // names of files by tensor

std::string PrintWeightMap(const WeightMap& files, uint64_t total_bytes);

// INVALID_ARGUMENT naming `file` and the tensor: no map, an empty one, or a value that is not the name of a file in the
// same folder.
absl::StatusOr<WeightMap> ParseWeightMap(absl::string_view json, absl::string_view file);

}  // namespace millrace::model
