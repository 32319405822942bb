// Reads a checkpoint folder back, refusing a damaged one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "blocks/block_table.h"
#include "coordinator/checkpoint_manifest.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::coordinator {

// Whether a tensor of a phase's table is of the part with this prefix, which then is taken off.
bool InPart(absl::string_view prefix, absl::string_view* name);

class CheckpointReader {
 public:
  // Maps the files and checks their sizes and headers. DATA_LOSS names the file, and for a short model.safetensors the
  // first tensor that is not all there. A missing optimizer.safetensors is fine (a fetched copy may lack it).
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(const std::string& directory);
  // The same of a folder that need not be a checkpoint: without a manifest only the weights are read, from one
  // model.safetensors of f32, as `millrace import` makes it. NOT_FOUND if there is none.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenModel(const std::string& directory);
  ~CheckpointReader();

  const CheckpointManifest& manifest() const;
  bool has_optimizer() const;

  // Compares every tensor and file with its sum: DATA_LOSS names the first tensor, or else file, that differs.
  absl::Status Verify() const;

  // FAILED_PRECONDITION unless `file` has exactly those tensors of the table that are of the part, without its prefix,
  // with their shapes; besides what the part says that it may lack and have. NOT_FOUND if there is no such file. Of
  // several parts one after another, which outlive the reader.
  absl::Status CheckTable(const blocks::BlockTable& blocks, const v1::ModelPart& part,
                          const std::string& file = kModelFile) const;

  // Instead of that, for a part whose file is not there: takes what is fresh, and zeros for the rest.
  void TakeFresh(const blocks::BlockTable& blocks, const v1::ModelPart& part) const;
  // Whether there is a file of this name.
  bool Has(const std::string& file) const;

  // Fills in weights, and if `with_state` state and coding, of a block of the checked table and parts. Thread-safe.
  absl::Status ReadBlock(const blocks::BlockTable& blocks, uint32_t block, bool with_state,
                         v1::LoadRequest* request) const;

 private:
  struct Impl;
  explicit CheckpointReader(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::coordinator
