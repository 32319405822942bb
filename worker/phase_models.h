// The models that a phase works with: which there are, what their tensors are called in the phase's table, and where
// their weights lie in a worker's memory.
//
// A model may have an adapter: then its own tensors are frozen, and the adapter's are another part, whose names begin
// with "adapter/" behind the model's prefix. So does that of a scalar head, which belongs with the adapter. A reference
// that is what the phase starts from has the first model's tensors, if these are frozen.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/adapters/adapter.h"
#include "model/families/network.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::worker {

// Prefixes of names in the table. The model that is trained has none.
inline constexpr absl::string_view kReference = "reference/";
inline constexpr absl::string_view kValue = "value/";
// The second of two models whose answers are compared.
inline constexpr absl::string_view kOther = "other/";
// Behind those.
inline constexpr absl::string_view kAdapter = "adapter/";
// Of the phase's reward of that index, which is a model.
std::string RewardPrefix(int index);

struct PhaseModel {
  std::string prefix;
  bool trained = false;
  std::unique_ptr<model::Network> network;
  std::unique_ptr<model::Adapter> adapter;  // null: none
  bool adapter_is_new = false;              // what it begins with has none
  bool shares = false;                      // the first model's tensors
  // What shards hold of it: its tensors, unless it shares them, and its adapter's.
  std::vector<v1::ModelPart> parts;
  // Its tensors' places in the table, then the adapter's.
  std::vector<int> places;
  // Its groups are those of the table from `first_group` on; its weights lie `offset` floats behind the first model's,
  // its adapter's `adapter_offset`: right behind its own if it is trained.
  uint32_t first_group = 0;
  int64_t offset = 0, adapter_offset = 0;
};

// Constant after Create.
class PhaseModels {
 public:
  // Those that the context's objective needs, of the context's architecture; those that are trained first.
  // INVALID_ARGUMENT names the field that does not fit.
  static absl::StatusOr<std::unique_ptr<PhaseModels>> Create(const v1::PhaseContext& context);

  // Whether another phase's, or epoch's, are these.
  bool Fits(const v1::PhaseContext& context) const;

  absl::Span<const PhaseModel> models() const { return models_; }
  const PhaseModel& trained() const { return models_[0]; }
  // Null if there is none.
  const PhaseModel* Find(absl::string_view prefix) const;

  // The text that goes through the first model can be so long.
  uint32_t context() const;

  // All models' tensors, as shards see them. What `phase` freezes and speeds up is of the first model. INVALID_ARGUMENT
  // for a pattern that matches no tensor, and if nothing is left to train.
  absl::StatusOr<v1::TensorTable> Table(const v1::PhaseSpec& phase) const;
  // Which singular values fall to zero as AdaLoRA trains, for each trained model that has it.
  std::vector<v1::Pruning> Prunings() const;

  // Floats of all weights, and of those that are trained, which come first.
  int64_t floats() const { return floats_; }
  int64_t trained_floats() const { return trained_floats_; }
  uint32_t groups() const { return groups_; }
  // Where a tensor of the table begins, in floats.
  const std::vector<int64_t>& offsets() const { return offsets_; }

 private:
  // Where a trained model's adapter's tensor lies in the table.
  static uint32_t PlaceOf(const PhaseModel& model, int tensor) {
    return static_cast<uint32_t>(model.places[static_cast<size_t>(model.network->tensors().size() + tensor)]);
  }

  // A tensor of a model, or of its adapter.
  struct Slot {
    size_t model = 0;
    bool of_adapter = false;
    int tensor = 0;
  };

  PhaseModels() = default;
  absl::Status AddParts(const v1::PhaseContext& context);
  void LayOut();

  std::string key_;
  std::vector<PhaseModel> models_;
  std::vector<Slot> slots_;  // by place in the table
  std::vector<int64_t> offsets_;
  int64_t floats_ = 0, trained_floats_ = 0;
  uint32_t groups_ = 0;
};

}  // namespace millrace::worker
