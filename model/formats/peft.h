// Reads and writes adapters in the layout of Hugging Face's peft: a folder with adapter_config.json and
// adapter_model.safetensors.
//
// Adapters whose virtual tokens a network makes are stored by peft as what it makes, from which training cannot go on.
// Checkpoints hold the network itself, in tensors "prompt_encoder.…"; both are read.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/adapters/adapter.h"
#include "model/families/network.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

inline constexpr char kAdapterConfigFile[] = "adapter_config.json";
inline constexpr char kAdapterFile[] = "adapter_model.safetensors";

// An adapter with its weights, laid out as its tensors.
struct StoredAdapter {
  std::unique_ptr<Adapter> adapter;
  std::vector<float> weights;

  ActiveAdapter active() const { return {adapter.get(), weights.data()}; }
};

// INVALID_ARGUMENT names `file` and the field that is missing, wrong or not supported. Of AdaLoRA's rank_pattern
// nothing is said in the spec: tensors' shapes tell.
absl::StatusOr<v1::AdapterSpec> ParseAdapterConfig(absl::string_view json, absl::string_view file,
                                                   const v1::ModelSpec& model);

// Which of AdaLoRA's `rank` singular values the file has, by "PATH.lora_E" of a layer; empty: all.
using RankPattern = std::map<std::string, std::vector<bool>>;

// `base`: where the base model is to be found; may be empty.
std::string PrintAdapterConfig(const Adapter& adapter, const v1::ModelSpec& model, absl::string_view base,
                               const RankPattern& rank_pattern = {});

// The folder of the base model that an adapter names, seen from the adapter's folder. INVALID_ARGUMENT if it names
// none.
absl::StatusOr<std::string> BaseOfAdapter(const std::string& directory);

// NOT_FOUND if the folder has no adapter_config.json. INVALID_ARGUMENT if the adapter is not of this network's
// architecture or a tensor is missing, too many, of another shape or not finite; DATA_LOSS for a damaged file.
absl::StatusOr<StoredAdapter> ReadAdapter(const std::string& directory, const Network& network);

// Writes both files into a folder that exists, as peft reads them. Of AdaLoRA without what belongs to singular values
// that are zero, unless all are, as at the start.
absl::Status WriteAdapter(const std::string& directory, const StoredAdapter& adapter, const v1::ModelSpec& model,
                          absl::string_view base, const kernels::Compute& compute);

// Makes an adapter part of the network's weights. INVALID_ARGUMENT for one that cannot be.
absl::Status MergeAdapter(const kernels::Compute& compute, const Network& network, const StoredAdapter& adapter,
                          float* weights);

}  // namespace millrace::model
