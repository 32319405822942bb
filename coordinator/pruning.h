// Decides which candidates (v1::Pruning) are zero after a step: AdaLoRA's budget of singular values, by the importance
// of what each belongs with (Zhang et al. 2023, sections 3.2 and 3.3).
//
// A candidate's score is the sum of the mean scores of its element, row or column of each tensor of its group (equation
// 7). Of `first` candidates, at step t of T with a warm-up of i and a final phase of f steps, this many are kept:
//
//   first                                                      t <= i
//   kept + (first - kept) (1 - (t - i) / (T - i - f))³         rounded down, at every every_steps-th step
//   kept                                                       t >= T - f: those of the highest scores at T - f - 1
//
// As peft does it, with two departures. Equal scores are kept or fall together, and are kept: at the start, when
// singular values are zero, all scores are. Importance is taken from weights before the step changes them, as in the
// paper.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "blocks/block_table.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::coordinator {

// INVALID_ARGUMENT unless the steps leave some to choose in; INTERNAL unless the groups are of tensors that are tracked
// and fit each other.
absl::Status CheckPruning(const v1::Pruning& pruning, const blocks::BlockTable& blocks, uint64_t steps);

// What happens at a step.
struct PruningStep {
  bool tracked = false;          // its gradient counts for the scores
  std::optional<uint64_t> kept;  // how many candidates are kept; nothing: there is no choice at this step
};
// Of step `step` = 1, 2, … of `steps`. Requires a checked pruning.
PruningStep PruningAt(const v1::Pruning& pruning, const blocks::BlockTable& blocks, uint64_t step, uint64_t steps);

uint64_t CandidatesOf(const v1::Pruning& pruning, const blocks::BlockTable& blocks);

// Those that fall when `kept` are kept: an entry for each group. `scores`: by tensor (FleetNorms). Requires a checked
// pruning.
std::vector<v1::ZeroedElements> Prune(const v1::Pruning& pruning, const blocks::BlockTable& blocks,
                                      absl::Span<const std::vector<double>> scores, uint64_t kept);

}  // namespace millrace::coordinator
