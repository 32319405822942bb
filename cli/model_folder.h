// Writes a model as a folder that `--model` and Hugging Face's transformers take.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/model_source.h"

namespace millrace::cli {

// ALREADY_EXISTS if something is at `out`: what is there is never written over.
absl::Status CheckIsFree(const std::string& out);

// Makes the folder `out` and the folders above it: config.json, generation_config.json, model.safetensors (f32),
// tokenizer.json, tokenizer_config.json, and chat_template.jinja if the model has one. It is there whole or not at all.
absl::Status WriteModelFolder(const OpenModel& open, const std::string& out);

}  // namespace millrace::cli
