// Writes and reads config.json, Hugging Face's description of a model's architecture.
//
// Families: "gpt2" (GPT2LMHeadModel: Conv1D matrices, GELU in its tanh form) and "llama" (LlamaForCausalLM: half-split
// RoPE, SwiGLU, no biases); with a scalar head GPT2ForSequenceClassification and LlamaForSequenceClassification with
// one label. What they do not know is refused by name where it changes what a model computes: another activation, RoPE
// scaling, attention or MLP biases, cross attention, scaling of attention by layer, …
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/families/head.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

struct Configuration {
  v1::ModelSpec spec;  // every field set
  uint32_t vocab_size = 0;
  std::optional<uint32_t> end_of_text;  // id of the token that ends a document, if it is known
  Head head = Head::kLanguage;
  // Id of the token that fills rows up. With a scalar head transformers takes the value of the last other token for
  // that of the row, and refuses several rows without it.
  std::optional<uint32_t> padding;
};

// A field that Hugging Face's GPT-2 lacks, "bias": false, is written for us alone; absent biases are zeros there.
std::string PrintConfig(const Configuration& configuration);
// generation_config.json beside it.
std::string PrintGenerationConfig();

// INVALID_ARGUMENT names `file` and the field.
absl::StatusOr<Configuration> ParseConfig(absl::string_view json, absl::string_view file);

}  // namespace millrace::model
