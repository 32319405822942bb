#include "worker/objective.h"

#include <cmath>

#include "common/job_file.h"
#include "text/batch_source.h"
#include "worker/compare_objective.h"
#include "worker/masked_objective.h"
#include "worker/policy_objective.h"
#include "worker/preference_objective.h"
#include "worker/reward_objective.h"
#include "worker/samples_objective.h"
#include "worker/text_objective.h"

namespace millrace::worker {
namespace {

constexpr uint64_t kMaxMicrobatches = uint64_t{1} << 20;  // of a step
// Tokens of a microbatch: bounds what a unit makes the worker allocate.
constexpr uint64_t kMaxTokens = uint64_t{1} << 24;

}  // namespace

void Measured::Report(v1::WorkResult* result) const {
  for (const auto& [name, sum] : sums_) {
    v1::Statistic* const statistic = result->add_statistics();
    statistic->set_name(name);
    statistic->set_sum(sum.first);
    statistic->set_count(sum.second);
  }
}

ModelInUse ObjectiveSetting::Model(absl::string_view prefix) const {
  const PhaseModel& model = *models->Find(prefix);
  ModelInUse used;
  used.network = model.network.get();
  used.own_weights = weights + model.offset;
  if (model.adapter != nullptr) used.adapters.push_back({model.adapter.get(), weights + model.adapter_offset});
  used.offset = model.offset;
  used.first_group = model.first_group;
  for (const int place : model.places) used.trainable.push_back(table->tensors(place).trainable());
  return used;
}

absl::StatusOr<std::vector<v1::Experience>> Objective::Rollout(const RolloutPass&, Measured*) {
  return absl::InvalidArgumentError("the phase's objective learns from no answers of its own");
}

absl::StatusOr<std::unique_ptr<Objective>> MakeObjective(const std::string& name, const ObjectiveSetting& setting) {
  const model::Network& trained = *setting.models->trained().network;
  if (name == "masked_lm" && trained.masked_head() != nullptr) return MaskedObjective::Create(setting);
  const bool language = trained.score() < 0 && trained.extends();
  if (language && name == kSamplesObjective) return std::make_unique<SamplesObjective>(setting);
  if (language && (name == "causal_lm" || name == "sft")) return std::make_unique<TextObjective>(setting);
  // Others learn with models of their own.
  if (name == setting.context->phase().objective()) {
    const ObjectiveTraits traits = TraitsOf(name);
    if (traits.trains_rewards) return std::make_unique<RewardObjective>(setting);
    if (traits.prefers) return std::make_unique<PreferenceObjective>(setting);
    if (!traits.learns) return std::make_unique<CompareObjective>(setting);
    if (traits.samples) return PolicyObjective::Create(setting);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no objective '", name, "' in a phase of '", setting.context->phase().objective(), "'"));
}

absl::Status AwaitGroups(model::GroupHook need, uint32_t groups) {
  for (uint32_t group = 0; group < groups; ++group) MILLRACE_RETURN_IF_ERROR(need(group));
  return absl::OkStatus();
}

absl::StatusOr<model::Batch> BatchOf(const v1::Microbatch& microbatch, uint32_t context) {
  const uint64_t count = uint64_t{microbatch.rows()} * microbatch.columns();
  if (microbatch.index() >= kMaxMicrobatches) {
    return absl::InvalidArgumentError(
        absl::StrCat("microbatch ", microbatch.index(), " is beyond the ", kMaxMicrobatches, " of a step"));
  }
  if (microbatch.columns() > uint64_t{context} + 1) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": sequences of ",
                                                   microbatch.columns(), " tokens where the model's context is ",
                                                   context));
  }
  if (count == 0 || count > kMaxTokens || microbatch.tokens().size() != count * sizeof(uint32_t)) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", microbatch.tokens().size(),
                                                   " bytes where ", microbatch.rows(), " x ", microbatch.columns(),
                                                   " tokens have ", count * sizeof(uint32_t)));
  }
  const auto wrong = [&](absl::string_view what, uint64_t bytes, uint64_t wanted) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", bytes, " bytes of ", what,
                                                   " where ", microbatch.rows(), " x ", microbatch.columns(),
                                                   " tokens have ", wanted));
  };
  model::Batch batch;
  // Bytes of a protobuf are allocated on their own, hence aligned.
  batch.ids = reinterpret_cast<const uint32_t*>(microbatch.tokens().data());
  if (!microbatch.scored().empty()) {
    if (microbatch.scored().size() != count) return wrong("scored", microbatch.scored().size(), count);
    batch.scored = reinterpret_cast<const uint8_t*>(microbatch.scored().data());
  }
  if (!microbatch.starts().empty()) {
    if (microbatch.starts().size() != count * sizeof(uint32_t)) {
      return wrong("starts", microbatch.starts().size(), count * sizeof(uint32_t));
    }
    batch.starts = reinterpret_cast<const uint32_t*>(microbatch.starts().data());
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t column = i % microbatch.columns();
      if (batch.starts[i] == column || (column > 0 && batch.starts[i] == batch.starts[i - 1])) continue;
      return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": a token of column ", column,
                                                     " cannot be of a sequence that begins in column ",
                                                     batch.starts[i]));
    }
  }
  batch.rows = microbatch.rows();
  batch.columns = microbatch.columns();
  batch.first_scored = microbatch.first_scored_column();
  return batch;
}

absl::StatusOr<uint64_t> PairsOf(const v1::Microbatch& microbatch) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", what));
  };
  if (microbatch.rows() % 2 != 0) return wrong(absl::StrCat(microbatch.rows(), " rows are no pairs"));
  if (microbatch.row_values().size() != size_t{microbatch.rows()} * sizeof(float)) {
    return wrong(absl::StrCat(microbatch.row_values().size(), " bytes of margins where ", microbatch.rows(),
                              " rows have ", microbatch.rows() * sizeof(float)));
  }
  const auto* const margins = reinterpret_cast<const float*>(microbatch.row_values().data());
  for (uint32_t row = 0; row < microbatch.rows(); ++row) {
    const bool can_be = margins[row] == text::kTie || (margins[row] >= 0 && std::isfinite(margins[row]));
    if (!can_be) return wrong(absl::StrCat("a margin of ", margins[row]));
  }
  return microbatch.rows() / 2;
}

size_t LastTokenOf(const model::Batch& batch, int64_t row) {
  const int64_t begin = row * batch.columns;
  int64_t last = batch.columns - 1;
  while (batch.starts != nullptr && last > 0 && batch.starts[begin + last] != 0) --last;
  return static_cast<size_t>(begin + last);
}

}  // namespace millrace::worker
