// Keeps the checkpoints of one job: JOB/checkpoints/PHASE-STEP and the links best and last.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/checkpoint_manifest.h"

namespace millrace::coordinator {

struct ShelfEntry {
  std::string name;       // "pretrain-300"
  std::string directory;  // path of the folder
  CheckpointManifest manifest;
};

// What is there is what the folders say; several objects may look at one shelf, one at a time may change it.
class CheckpointShelf {
 public:
  explicit CheckpointShelf(const std::string& job_directory);

  // Where checkpoints are built before they are renamed into place; starts with a dot, in the same file system.
  std::string BuildingDirectory(absl::string_view name) const;
  const std::string& directory() const { return directory_; }

  // Checkpoints with a readable manifest, in the order of phase and step.
  std::vector<ShelfEntry> List() const;

  // "best", "last", "PHASE-STEP", or a step (of the last phase that has it). NOT_FOUND names those there are.
  absl::StatusOr<ShelfEntry> Find(absl::string_view which) const;

  // Makes the folder and removes what was being built when a coordinator died.
  absl::Status CleanUp();
  // Moves a finished building folder to its name, replacing an earlier one of that name, and points best and last.
  absl::Status Place(const std::string& building, absl::string_view name);
  // Of a phase, keeps the best, the last, and the newest `keep` besides.
  absl::Status Retain(absl::string_view phase, uint32_t keep);
  // Takes a damaged checkpoint off the shelf, keeping its files beside for inspection.
  absl::Status SetAside(const ShelfEntry& entry);

 private:
  absl::Status Point() const;

  const std::string directory_;
};

// The evaluated one with the lowest loss (the earliest of equals) of the last phase that has any; null: none.
const ShelfEntry* Best(absl::Span<const ShelfEntry> entries);
// The same within a phase.
const ShelfEntry* BestOfPhase(absl::Span<const ShelfEntry> entries, absl::string_view phase);

}  // namespace millrace::coordinator
