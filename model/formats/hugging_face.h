// Reads and writes model folders in Hugging Face's layout: config.json, model.safetensors (or the shards that
// model.safetensors.index.json names), tokenizer.json.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/formats/config_json.h"
#include "model/tensor_list.h"

namespace millrace::model {

// DIRECTORY/config.json; but embeddings are not tied, whatever it says, if the folder stores a "lm_head.weight" that
// differs from them: transformers takes it so. NOT_FOUND naming the file.
absl::StatusOr<Configuration> ReadConfig(const std::string& directory);

// Fills `memory`, laid out as the list says, from the folder's safetensors: F32, F16 or BF16. Names may lack or have
// the prefix "transformer." (GPT-2) or "model." (the others). Tensors that hold no parameters (attention masks, rotary
// tables, a tied lm_head that equals the embedding) are passed over; any other that the list lacks, a missing one or
// another shape is INVALID_ARGUMENT naming file and tensor; so is a value that is not finite, and a tensor in another
// file than the index says. So are weights that lie in pytorch_model.bin only, which is not read. DATA_LOSS for a
// damaged file.
absl::Status ReadWeights(const std::string& directory, const TensorList& tensors, float* memory);

// Writes to `directory`, which must exist, the tensors in the list's order as configuration.dtype, config.json and, for
// a language model, generation_config.json, each atomically. The tensors are in model.safetensors or, if they have more
// than `max_file_bytes`, in model-00001-of-0000N.safetensors, … and model.safetensors.index.json: each file then holds
// as many as go into so much, at least one. They pass through a small buffer. INVALID_ARGUMENT for q8_0, and for a
// value that f16 does not hold, naming the tensor.
absl::Status WriteModel(const std::string& directory, const Configuration& configuration, const TensorList& tensors,
                        const float* memory, uint64_t max_file_bytes = std::numeric_limits<uint64_t>::max());

}  // namespace millrace::model
