// Says what a checkpoint folder holds, so that a damaged one is noticed and training can go on from a good one.
//
// A checkpoint folder DIR/PHASE-STEP is a Hugging Face model folder and a little more:
//   model.safetensors        f32 master weights, tensors in the model's order (common/safetensors.h)
//   config.json, …           side files of the model's family
//   tokenizer.json, tokenizer_config.json
//   optimizer.safetensors    per block N that has state "block.N.state" F32 [values]; "codings" I64 [blocks, 2]: bits
//                            (0: as at the start) and exponent of each block's gradient coding
//   job.json                 the JobSpec with every default, as protobuf's JSON
//   manifest.json            written last:
//
//   {"format": "millrace checkpoint", "version": 1,
//    "job": ID, "phase": NAME, "phase_index": I, "step": V, "parameters": N, "data": FINGERPRINT,
//    "digest": SHA256, "seconds_training": X, "tokens": N,
//    "variables": {NAME: X, …},                            what the phase adapts from one rollout to the next, if
//    anything "evaluations": [{"step": V, "loss": X, "bits_per_byte": X, "tokens": N, "bytes": N, "statistics": {NAME:
//    X, …}}, …],
//                                                                         the phase's, up to V
//    "tensors": [{"name": NAME, "sha256": SHA256}, …],                                        of model.safetensors
//    "files": [{"name": NAME, "bytes": N, "sha256": SHA256}, …]}                  all files of the folder but itself
//
// Of a phase that trains an adapter model.safetensors is what the phase started from (a link to the same file where the
// file system allows it), and adapter_model.safetensors and adapter_config.json are the adapter in peft's layout.
//
// digest: SHA-256 over all tensors in name order, the adapter's included: the name's bytes, a zero byte, the
// little-endian f32 data.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::coordinator {

inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kModelFile[] = "model.safetensors";
inline constexpr char kAdapterFile[] = "adapter_model.safetensors";
inline constexpr char kOptimizerFile[] = "optimizer.safetensors";
inline constexpr char kJobFile[] = "job.json";
inline constexpr size_t kMaxManifestBytes = 16 << 20;

struct CheckpointManifest {
  struct Evaluation {
    uint64_t step = 0;
    double loss = 0;
    double bits_per_byte = 0;
    uint64_t tokens = 0;
    uint64_t bytes = 0;
    std::map<std::string, double> statistics;  // as in EvaluationEvent
    bool operator==(const Evaluation&) const = default;
  };
  struct TensorSum {
    std::string name;
    std::string sha256;
    bool operator==(const TensorSum&) const = default;
  };
  struct FileSum {
    std::string name;
    uint64_t bytes = 0;
    std::string sha256;
    bool operator==(const FileSum&) const = default;
  };
  std::string job;
  std::string phase;
  uint32_t phase_index = 0;
  uint64_t step = 0;
  uint64_t parameters = 0;
  std::string data;
  std::string digest;
  double seconds_training = 0;
  uint64_t tokens = 0;
  std::map<std::string, double> variables;
  std::vector<Evaluation> evaluations;
  std::vector<TensorSum> tensors;
  std::vector<FileSum> files;
  bool operator==(const CheckpointManifest&) const = default;

  // The evaluation made at `step` itself, or null.
  const Evaluation* evaluation() const;
  uint64_t bytes() const;
};

std::string PrintManifest(const CheckpointManifest& manifest);

// Checks everything that can be checked without the other files: types, bounds, names that are plain file names, sums
// that are SHA-256, nothing twice, evaluations in order. DATA_LOSS says which field is wrong.
absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view json);

// Letters, digits, '.', '_', '-'; not starting with '.'; 1 to `limit` long: safe as one part of a path.
bool IsPlainName(absl::string_view name, size_t limit = 128);

}  // namespace millrace::coordinator
