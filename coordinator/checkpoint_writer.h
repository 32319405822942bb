// Writes one checkpoint folder from blocks as they arrive from the shards (see checkpoint_manifest.h for its files).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "blocks/block_table.h"
#include "coordinator/checkpoint_manifest.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::coordinator {

class CheckpointWriter {
 public:
  // Makes `directory` (anew, if it is there) with the side files. `parts`: which tensors go into which file; the first
  // is the model, whose sums and digest the manifest has. `frozen_model`, unless it is empty: a file that holds all of
  // the first part, to be linked or copied instead of written. `manifest` says everything else; `blocks` outlives the
  // writer. RESOURCE_EXHAUSTED when the disk is full, naming it: the space for the weights is reserved.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Create(const std::string& directory,
                                                                  const blocks::BlockTable* blocks,
                                                                  absl::Span<const v1::ModelPart> parts,
                                                                  const std::string& frozen_model,
                                                                  CheckpointManifest manifest,
                                                                  const std::map<std::string, std::string>& side_files);
  // Removes the folder unless finished.
  ~CheckpointWriter();

  // Tensors that are in no file that is written, by index: their blocks do not come.
  std::vector<uint32_t> left_out() const;

  // Writes a block's weights, state and coding; thread-safe. Each block comes once.
  absl::Status Add(const v1::SnapshotReply& block);

  // Once every block is there that is not left out: sums up what was written, syncs it and writes the manifest. The
  // folder is then complete and the caller's to move.
  absl::StatusOr<CheckpointManifest> Finish();

 private:
  struct Impl;
  explicit CheckpointWriter(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::coordinator
