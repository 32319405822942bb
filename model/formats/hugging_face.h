// Reads and writes model folders in Hugging Face's layout: config.json, model.safetensors (or the shards that
// model.safetensors.index.json names), tokenizer.json.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/formats/config_json.h"
#include "model/tensor_list.h"

namespace millrace::model {

// DIRECTORY/config.json. NOT_FOUND naming the file.
absl::StatusOr<Configuration> ReadConfig(const std::string& directory);

// Fills `memory`, laid out as the list says, from the folder's safetensors: F32, F16 or BF16. Names may lack or have
// the prefix "transformer." (GPT-2) or "model." (LLaMA). Tensors that hold no parameters (attention masks, rotary
// tables, a tied lm_head) are passed over; any other that the list lacks, a missing one or another shape is
// INVALID_ARGUMENT naming file and tensor; so is a value that is not finite. DATA_LOSS for a damaged file.
absl::Status ReadWeights(const std::string& directory, const TensorList& tensors, float* memory);

// Writes `directory`/model.safetensors with f32 tensors in the list's order, config.json and, for a language model,
// generation_config.json, each atomically. The folder must exist.
absl::Status WriteModel(const std::string& directory, const Configuration& configuration, const TensorList& tensors,
                        const float* memory);

}  // namespace millrace::model
