// What a phase learns: the loss of a microbatch, and its gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/compute.h"
#include "model/families/network.h"
#include "model/objectives/token_scores.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "worker/phase_models.h"

namespace millrace::worker {

// Sums over counts, by name, as results tell them.
class Measured {
 public:
  void Add(const std::string& name, double sum, double count) {
    auto& [all, of] = sums_[name];
    all += sum;
    of += count;
  }
  void Report(v1::WorkResult* result) const;

 private:
  std::map<std::string, std::pair<double, double>> sums_;
};

// One of the phase's models, with its weights.
struct ModelInUse {
  const model::Network* network = nullptr;
  const float* own_weights = nullptr;
  std::vector<model::ActiveAdapter> adapters;  // none or one
  int64_t offset = 0;                          // of its gradients
  uint32_t first_group = 0;
  std::vector<bool> trainable;  // its tensors, then its adapter's

  // A view of this.
  model::NetworkWeights weights() const { return {own_weights, adapters}; }

  // A hook of the phase's groups as one of the model's.
  auto Own(model::GroupHook hook) const {
    return [hook, first = first_group](uint32_t group) { return hook(first + group); };
  }
};

// What objectives work with; all of it outlives them.
struct ObjectiveSetting {
  const kernels::Compute* compute = nullptr;
  const v1::PhaseContext* context = nullptr;
  const PhaseModels* models = nullptr;
  const v1::TensorTable* table = nullptr;
  const float* weights = nullptr;

  // Requires that there is such a model.
  ModelInUse Model(absl::string_view prefix) const;
};

// Hooks get groups of the phase's table.
struct LossPass {
  const v1::Microbatch& microbatch;
  model::GroupHook need;
};
struct GradientPass {
  const v1::Microbatch& microbatch;
  model::GroupHook need;
  model::Noise noise;
  double scale = 0;                                              // 1 / WorkUnit.loss_denominator
  const google::protobuf::Map<std::string, double>& statistics;  // WorkUnit.statistics
  float* gradients = nullptr;                                    // of all trained models
  model::GroupHook final;
};
struct RolloutPass {
  const v1::Microbatch& microbatch;
  model::GroupHook need;
  const google::protobuf::Map<std::string, double>& statistics;  // WorkUnit.statistics
};

// One thread at a time.
class Objective {
 public:
  virtual ~Objective() = default;

  // How much of what WorkResult.predictions counts is in the microbatch; 0: nothing is to be computed.
  // INVALID_ARGUMENT for one that cannot be.
  virtual absl::StatusOr<uint64_t> Count(const v1::Microbatch& microbatch) const = 0;
  // The sum of the loss over it. INVALID_ARGUMENT for ids beyond the vocabulary and the like; RESOURCE_EXHAUSTED if
  // there is no memory for such a microbatch. Requires that something counts.
  virtual absl::StatusOr<double> Loss(const LossPass& pass, Measured* measured) = 0;
  // The same, and adds `scale` times its gradients to `gradients`.
  virtual absl::StatusOr<double> Gradients(const GradientPass& pass, Measured* measured) = 0;
  // Answers the prompts. INVALID_ARGUMENT by those that learn from nothing of the kind.
  virtual absl::StatusOr<std::vector<v1::Experience>> Rollout(const RolloutPass& pass, Measured* measured);
};

// The objective of SAMPLE units, beside that of the phase.
inline constexpr char kSamplesObjective[] = "samples";

// INVALID_ARGUMENT if there is no objective of this name, or the setting's models are not what it needs.
absl::StatusOr<std::unique_ptr<Objective>> MakeObjective(const std::string& name, const ObjectiveSetting& setting);

// Waits for all of a phase's weights: for passes that go through them again and again.
absl::Status AwaitGroups(model::GroupHook need, uint32_t groups);

// A microbatch's rows of tokens, checked: what decides how much memory they take, and where sequences begin. Views of
// the microbatch. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<model::Batch> BatchOf(const v1::Microbatch& microbatch, uint32_t context);

// Pairs of rows, chosen and rejected, with their values in the microbatch. INVALID_ARGUMENT for an odd number of rows
// and for values that cannot be.
absl::StatusOr<uint64_t> PairsOf(const v1::Microbatch& microbatch);
// Where the last token of a row's first sequence lies, behind which there is only padding: index into [rows, columns].
size_t LastTokenOf(const model::Batch& batch, int64_t row);

// Memory for the passes of a T (model/objectives/token_scores.h, token_values.h, causal_lm.h), for batches as large as
// the largest one so far.
template <typename T>
class PassMemory {
 public:
  PassMemory(const model::Network* network, const kernels::Compute* compute, bool for_training)
      : network_(network), compute_(compute), for_training_(for_training) {}

  bool Holds(int64_t rows, int64_t columns) const {
    return passes_.has_value() && rows * columns <= tokens_ && columns <= columns_;
  }
  // RESOURCE_EXHAUSTED if there is no memory.
  absl::StatusOr<T*> For(int64_t rows, int64_t columns) {
    if (!Holds(rows, columns)) {
      tokens_ = std::max(rows * columns, tokens_);
      columns_ = std::max(columns, columns_);
      passes_.reset();
      absl::StatusOr<T> made = T::Create(network_, compute_, tokens_, columns_, for_training_);
      if (!made.ok()) {
        return Annotate(made.status(), absl::StrCat("a pass over ", rows, " sequences of ", columns,
                                                    " tokens (a smaller phases.microbatch needs less)"));
      }
      passes_.emplace(*std::move(made));
    }
    return &*passes_;
  }

 private:
  const model::Network* const network_;
  const kernels::Compute* const compute_;
  const bool for_training_;
  int64_t tokens_ = 0;
  int64_t columns_ = 0;
  std::optional<T> passes_;
};

}  // namespace millrace::worker
