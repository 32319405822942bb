// Writes a model as a folder that `--model` and Hugging Face's transformers take, or as a GGUF file for llama.cpp.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/model_source.h"
#include "model/formats/dtype.h"

namespace millrace::cli {

// ALREADY_EXISTS if something is at `out`: what is there is never written over.
absl::Status CheckIsFree(const std::string& out);

// Makes the folder `out` and the folders above it: config.json, generation_config.json, the weights as `dtype` (not
// q8_0) in model.safetensors, or in several files with an index if they have more than `max_file_bytes`,
// tokenizer.json, tokenizer_config.json, chat_template.jinja if the model has one, and the adapter if it uses one. It
// is there whole or not at all. INVALID_ARGUMENT for a model that uses several adapters.
absl::Status WriteModelFolder(const OpenModel& open, const std::string& out, model::Dtype dtype = model::Dtype::kF32,
                              uint64_t max_file_bytes = std::numeric_limits<uint64_t>::max());

// Makes the folder `out` with the one adapter that the model uses, as Hugging Face's peft loads it; `base` is what it
// calls its base model, which may be empty. INVALID_ARGUMENT for a model that uses none or several.
absl::Status WriteAdapterFolder(const OpenModel& open, const std::string& out, const std::string& base);

// Makes the GGUF file `out` and the folders above it; general.name is the file's name without its end. It is there
// whole or not at all. INVALID_ARGUMENT for what GGUF has no place for (model/formats/gguf.h).
absl::Status WriteModelGguf(const OpenModel& open, const std::string& out, model::Dtype dtype);

}  // namespace millrace::cli
