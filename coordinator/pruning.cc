#include "coordinator/pruning.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"

namespace millrace::coordinator {

absl::Status CheckPruning(const v1::Pruning& pruning, const blocks::BlockTable& blocks, uint64_t steps) {
  if (pruning.warmup_steps() >= steps || pruning.final_steps() >= steps - pruning.warmup_steps()) {
    return absl::InvalidArgumentError(absl::StrCat("adapter: warmup_steps of ", pruning.warmup_steps(),
                                                   " and final_steps of ", pruning.final_steps(), " leave none of ",
                                                   steps, " to choose what is kept"));
  }
  const auto wrong = [](absl::string_view what) {
    return absl::InternalError(absl::StrCat("the worker's plan: pruning ", what));
  };
  const auto tensors = blocks.tensors();
  for (const v1::Pruning::Group& group : pruning.groups()) {
    if (group.elements() >= tensors.size()) return wrong("of a tensor that is not there");
    const blocks::TensorInfo& candidates = tensors[group.elements()];
    if (candidates.sensitivity.by() != v1::Sensitivity::ELEMENTS) return wrong("of elements that are not scored");
    for (const uint32_t beside : group.beside()) {
      if (beside >= tensors.size() || tensors[beside].scores() != candidates.size) {
        return wrong(absl::StrCat("of ", candidates.name, " with what has other scores"));
      }
    }
  }
  if (pruning.every_steps() == 0 || pruning.kept() > CandidatesOf(pruning, blocks)) return wrong("that cannot be");
  return absl::OkStatus();
}

uint64_t CandidatesOf(const v1::Pruning& pruning, const blocks::BlockTable& blocks) {
  uint64_t candidates = 0;
  for (const v1::Pruning::Group& group : pruning.groups()) {
    candidates += static_cast<uint64_t>(blocks.tensors()[group.elements()].size);
  }
  return candidates;
}

PruningStep PruningAt(const v1::Pruning& pruning, const blocks::BlockTable& blocks, uint64_t step, uint64_t steps) {
  const uint64_t end = steps - pruning.final_steps();
  // Scores stand still from then on, so that the choice does.
  if (step >= end) return {.tracked = false, .kept = pruning.kept()};
  if (step <= pruning.warmup_steps() || step % pruning.every_steps() != 0) return {.tracked = true, .kept = {}};
  const auto last = static_cast<double>(pruning.kept());
  const double more = static_cast<double>(CandidatesOf(pruning, blocks)) - last;
  const double left =
      1.0 - static_cast<double>(step - pruning.warmup_steps()) / static_cast<double>(end - pruning.warmup_steps());
  return {.tracked = true, .kept = static_cast<uint64_t>(more * (left * left * left) + last)};
}

std::vector<v1::ZeroedElements> Prune(const v1::Pruning& pruning, const blocks::BlockTable& blocks,
                                      absl::Span<const std::vector<double>> scores, uint64_t kept) {
  std::vector<std::vector<double>> by_group;
  std::vector<double> all;
  for (const v1::Pruning::Group& group : pruning.groups()) {
    std::vector<double>& own = by_group.emplace_back(scores[group.elements()]);
    for (const uint32_t beside : group.beside()) {
      const blocks::TensorInfo& tensor = blocks.tensors()[beside];
      const auto each = static_cast<double>(tensor.size / tensor.scores());
      for (size_t i = 0; i < own.size(); ++i) own[i] += scores[beside][i] / each;
    }
    all.insert(all.end(), own.begin(), own.end());
  }
  std::vector<v1::ZeroedElements> zeroed;
  if (kept >= all.size()) return zeroed;
  std::sort(all.begin(), all.end(), std::greater<>());
  for (size_t i = 0; i < by_group.size(); ++i) {
    v1::ZeroedElements& fallen = zeroed.emplace_back();
    fallen.set_tensor(pruning.groups(static_cast<int>(i)).elements());
    for (size_t j = 0; j < by_group[i].size(); ++j) {
      if (kept == 0 || by_group[i][j] < all[kept - 1]) fallen.add_elements(j);
    }
  }
  return zeroed;
}

}  // namespace millrace::coordinator
