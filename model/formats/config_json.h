// Writes and reads config.json, Hugging Face's description of a model's architecture.
//
// Families: "gpt2" (GPT2LMHeadModel: Conv1D matrices, GELU in its tanh form), "llama" (LlamaForCausalLM: half-split
// RoPE, SwiGLU, no biases), "mistral" (that, with a sliding window if wanted), "qwen2" (with biases on queries, keys
// and values) and "bert" (BertForPreTraining: GELU with erf); decoders with a scalar head …ForSequenceClassification
// with one label. What they do not know is refused by name where it changes what a model computes: another activation,
// RoPE scaling, other biases, a window of some layers only, cross attention, scaling of attention by layer, …
//
// Fields whose defaults differ between a family and its real models, or between versions of transformers, are all
// written: rope_parameters (since version 5) beside rope_theta, dtype (since 5) beside torch_dtype, n_ctx (llama.cpp's
// converter).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/families/head.h"
#include "model/formats/dtype.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

struct Configuration {
  v1::ModelSpec spec;  // every field set, but sliding_window where there is none
  uint32_t vocab_size = 0;
  std::optional<uint32_t> end_of_text;  // id of the token that ends a document, if it is known
  Head head = Head::kLanguage;
  // Id of the token that fills rows up. With a scalar head transformers takes the value of the last other token for
  // that of the row, and refuses several rows without it.
  std::optional<uint32_t> padding;
  // Of the stored weights, and what transformers then computes in. config.json knows no q8_0.
  Dtype dtype = Dtype::kF32;
};

// A field that Hugging Face's GPT-2 lacks, "bias": false, is written for us alone; absent biases are zeros there.
std::string PrintConfig(const Configuration& configuration);
// generation_config.json beside it: transformers' generate() reads from there, not from config.json, which token ends a
// text and which fills up.
std::string PrintGenerationConfig(const Configuration& configuration);

// INVALID_ARGUMENT names `file` and the field.
absl::StatusOr<Configuration> ParseConfig(absl::string_view json, absl::string_view file);

}  // namespace millrace::model
