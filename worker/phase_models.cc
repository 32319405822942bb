#include "worker/phase_models.h"

#include <fnmatch.h>

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/job_file.h"
#include "common/status.h"
#include "model/formats/peft.h"
#include "model/tensor_list.h"

namespace millrace::worker {
namespace {

bool Matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), /*flags=*/0) == 0;
}

// Which tensors of the first model are trained, and how fast. `groups`: of the model. INVALID_ARGUMENT for a pattern
// that matches no tensor, and if nothing is left to train.
absl::Status Choose(const v1::TrainableSpec& spec, uint32_t groups, absl::Span<v1::Tensor* const> tensors) {
  const auto each = [&](const std::string& pattern, absl::FunctionRef<void(v1::Tensor&)> act) -> absl::Status {
    bool matched = false;
    for (v1::Tensor* const tensor : tensors) {
      if (!Matches(pattern, tensor->name())) continue;
      matched = true;
      act(*tensor);
    }
    if (matched) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("trainable: no tensor is called '", pattern,
                                                   "'; the model has tensors such as ", tensors[0]->name(), " and ",
                                                   tensors[tensors.size() / 2]->name()));
  };
  if (spec.has_last_layers()) {
    // Groups: the embeddings, the layers, and what follows them.
    for (v1::Tensor* const tensor : tensors) {
      tensor->set_trainable(tensor->trainable() && tensor->group() + spec.last_layers() + 1 >= groups);
    }
  }
  for (const std::string& pattern : spec.freeze()) {
    MILLRACE_RETURN_IF_ERROR(each(pattern, [](v1::Tensor& tensor) { tensor.set_trainable(false); }));
  }
  for (const v1::LearningRateSpec& rate : spec.learning_rates()) {
    MILLRACE_RETURN_IF_ERROR(each(rate.pattern(), [&rate](v1::Tensor& tensor) {
      if (tensor.learning_rate_multiplier() == 0) tensor.set_learning_rate_multiplier(rate.multiplier());
    }));
  }
  for (const v1::Tensor* const tensor : tensors) {
    if (tensor->trainable()) return absl::OkStatus();
  }
  return absl::InvalidArgumentError("trainable: everything is frozen; nothing is left to train");
}

v1::Tensor TensorOf(const std::string& name, bool trainable, uint32_t first_group, const model::TensorSpec& spec) {
  v1::Tensor tensor;
  tensor.set_name(name);
  for (const int64_t extent : spec.shape) tensor.add_shape(extent);
  tensor.set_trainable(trainable);
  switch (spec.role) {
    case model::Role::kMatrix:
      tensor.set_role(v1::Tensor::MATRIX);
      break;
    case model::Role::kEmbedding:
      tensor.set_role(v1::Tensor::EMBEDDING);
      break;
    case model::Role::kVector:
      tensor.set_role(v1::Tensor::VECTOR);
      break;
  }
  tensor.set_rows_are_inputs(spec.rows_are_inputs);
  tensor.set_group(first_group + spec.group);
  return tensor;
}

struct Wanted {
  std::string prefix;
  std::string from;  // as ModelPart.from
  std::string file;  // of checkpoints, if it is trained
  model::Head head = model::Head::kLanguage;
  bool trained = false;
  bool may_share = false;
};

std::vector<Wanted> WantedModels(const v1::PhaseSpec& phase) {
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  std::vector<Wanted> wanted(1);
  wanted[0].trained = true;
  wanted[0].file = "model.safetensors";
  if (traits.trains_rewards) wanted[0].head = model::Head::kScalar;
  const auto add = [&](absl::string_view prefix, const std::string& from, model::Head head) -> Wanted& {
    Wanted& added = wanted.emplace_back();
    added.prefix = std::string(prefix);
    added.from = from;
    added.head = head;
    return added;
  };
  if (phase.objective() == "ppo") {
    std::string from = phase.policy().value_from();
    for (const v1::RewardSpec& reward : phase.rewards()) {
      if (from.empty()) from = reward.from();
    }
    Wanted& value = add(kValue, from, model::Head::kScalar);
    value.trained = true;
    value.file = "value.safetensors";
  }
  if (phase.compare().from_size() > 0) wanted[0].from = phase.compare().from(0);
  if (phase.compare().from_size() > 1) add(kOther, phase.compare().from(1), model::Head::kLanguage);
  if (traits.has_reference) {
    Wanted& reference = add(kReference, phase.reference(), model::Head::kLanguage);
    reference.may_share = phase.reference().empty();
  }
  for (int i = 0; i < phase.rewards_size(); ++i) {
    if (phase.rewards(i).type() == "model") add(RewardPrefix(i), phase.rewards(i).from(), model::Head::kScalar);
  }
  return wanted;
}

std::string KeyOf(const v1::PhaseContext& context) {
  std::string key = absl::StrCat(context.model().SerializeAsString(), "\n", context.vocab_size(), "\n", context.seed(),
                                 "\n", context.phase().adapter().SerializeAsString());
  for (const Wanted& wanted : WantedModels(context.phase())) {
    const auto adapter = context.adapters().find(wanted.from);
    absl::StrAppend(&key, "\n", wanted.prefix, " ", wanted.from, " ", static_cast<int>(wanted.head), wanted.trained,
                    " ", adapter == context.adapters().end() ? "" : adapter->second.SerializeAsString());
  }
  return key;
}

// A scalar head may go on a model that had another.
void AddScore(const PhaseModel& model, uint64_t seed, const std::string& name, v1::ModelPart* part) {
  const model::TensorList& tensors = model.network->tensors();
  const int score = model.network->score();
  std::vector<float> values(static_cast<size_t>(tensors[score].size));
  model::StartValues(tensors[score], score, seed, 0, absl::MakeSpan(values));
  (*part->mutable_fresh())[name] =
      std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

std::string ScoreInAdapter() { return absl::StrCat(model::kAdapterPrefix, "score.weight"); }

}  // namespace

std::string RewardPrefix(int index) { return absl::StrCat("reward", index, "/"); }

absl::StatusOr<std::unique_ptr<PhaseModels>> PhaseModels::Create(const v1::PhaseContext& context) {
  auto made = std::unique_ptr<PhaseModels>(new PhaseModels());
  made->key_ = KeyOf(context);
  MILLRACE_RETURN_IF_ERROR(made->AddParts(context));
  made->LayOut();
  return made;
}

absl::Status PhaseModels::AddParts(const v1::PhaseContext& context) {
  for (const Wanted& wanted : WantedModels(context.phase())) {
    PhaseModel& model = models_.emplace_back();
    model.prefix = wanted.prefix;
    model.trained = wanted.trained;
    MILLRACE_ASSIGN_OR_RETURN(model.network, model::CreateNetwork(context.model(), context.vocab_size(), wanted.head));
    const auto held = context.adapters().find(wanted.from);
    const v1::AdapterSpec* adapter = held == context.adapters().end() ? nullptr : &held->second;
    const bool first = models_.size() == 1;
    if (first && context.phase().has_adapter()) adapter = &context.phase().adapter();
    if (adapter != nullptr) {
      model.adapter_is_new = held == context.adapters().end();
      MILLRACE_ASSIGN_OR_RETURN(model.adapter,
                                model::Adapter::Create(*adapter, context.model(), model.network->linear_sites()));
      model.network->ReserveVirtualTokens(model.adapter->virtual_tokens());
    }
    model.shares = wanted.may_share && models_[0].adapter != nullptr;
    if (!model.shares) {
      v1::ModelPart& part = model.parts.emplace_back();
      part.set_prefix(wanted.prefix);
      part.set_from(wanted.from);
      // The first model's is in every checkpoint, frozen or not.
      if (adapter == nullptr || first) part.set_file(wanted.file);
      if (model.network->score() >= 0) part.add_dropped("lm_head.weight");
      if (model.network->score() >= 0 && adapter == nullptr) AddScore(model, context.seed(), "score.weight", &part);
      if (adapter != nullptr) part.add_dropped("score.weight");
    }
    if (adapter == nullptr) continue;
    v1::ModelPart& part = model.parts.emplace_back();
    part.set_prefix(absl::StrCat(wanted.prefix, kAdapter));
    part.set_from(wanted.from);
    part.set_start_file(model::kAdapterFile);
    if (wanted.trained) part.set_file(first ? model::kAdapterFile : absl::StrCat("adapter_", wanted.file));
    part.set_may_be_new(model.adapter_is_new);
    if (model.network->score() >= 0) {
      AddScore(model, context.seed(), ScoreInAdapter(), &part);
    } else {
      // Of a reward model that has been one.
      part.add_dropped(ScoreInAdapter());
    }
  }
  return absl::OkStatus();
}

// Gives tensors their places, group by group, and memory.
void PhaseModels::LayOut() {
  for (PhaseModel& model : models_) {
    const int64_t own = model.network->tensors().floats();
    model.offset = model.shares ? models_[0].offset : floats_;
    if (!model.shares) floats_ += own;
    model.adapter_offset = floats_;
    if (model.adapter != nullptr) floats_ += model.adapter->tensors().floats();
    if (model.trained) trained_floats_ = floats_;
    model.places.resize(static_cast<size_t>(model.network->tensors().size()) +
                        static_cast<size_t>(model.adapter == nullptr ? 0 : model.adapter->tensors().size()));
  }
  const auto add = [this](size_t index, bool of_adapter, uint32_t group) {
    PhaseModel& model = models_[index];
    const model::TensorList& tensors = of_adapter ? model.adapter->tensors() : model.network->tensors();
    for (int i = 0; i < tensors.size(); ++i) {
      if (tensors[i].group != group) continue;
      model.places[static_cast<size_t>(i + (of_adapter ? model.network->tensors().size() : 0))] =
          static_cast<int>(slots_.size());
      slots_.push_back({index, of_adapter, i});
      offsets_.push_back((of_adapter ? model.adapter_offset : model.offset) + tensors[i].offset);
    }
  };
  for (size_t index = 0; index < models_.size(); ++index) {
    PhaseModel& model = models_[index];
    if (model.shares) continue;
    model.first_group = groups_;
    for (uint32_t group = 0; group < model.network->groups(); ++group) {
      add(index, false, group);
      for (size_t other = index; other < models_.size(); ++other) {
        const bool here = other == index || (index == 0 && models_[other].shares);
        if (here && models_[other].adapter != nullptr) add(other, true, group);
      }
    }
    groups_ += model.network->groups();
  }
  for (PhaseModel& model : models_) {
    if (model.shares) std::copy_n(models_[0].places.begin(), model.network->tensors().size(), model.places.begin());
  }
}

bool PhaseModels::Fits(const v1::PhaseContext& context) const { return KeyOf(context) == key_; }

const PhaseModel* PhaseModels::Find(absl::string_view prefix) const {
  for (const PhaseModel& model : models_) {
    if (model.prefix == prefix) return &model;
  }
  return nullptr;
}

uint32_t PhaseModels::context() const {
  const PhaseModel& model = models_[0];
  const int64_t before = model.adapter == nullptr ? 0 : model.adapter->virtual_tokens();
  return model.network->spec().context() - static_cast<uint32_t>(before);
}

absl::StatusOr<v1::TensorTable> PhaseModels::Table(const v1::PhaseSpec& phase) const {
  v1::TensorTable table;
  for (const Slot& slot : slots_) {
    const PhaseModel& model = models_[slot.model];
    const bool score = !slot.of_adapter && slot.tensor == model.network->score();
    const bool with_adapter = slot.of_adapter || (score && model.adapter != nullptr);
    const model::TensorSpec& spec =
        slot.of_adapter ? model.adapter->tensors()[slot.tensor] : model.network->tensors()[slot.tensor];
    const std::string name = score && with_adapter ? ScoreInAdapter() : spec.name;
    const bool trainable = model.trained && (with_adapter || model.adapter == nullptr);
    *table.add_tensors() = TensorOf(absl::StrCat(model.prefix, with_adapter ? kAdapter : "", name), trainable,
                                    model.shares ? models_[0].first_group : model.first_group, spec);
    if (model.trained && slot.model > 0) {
      table.mutable_tensors()->rbegin()->set_learning_rate_multiplier(phase.policy().value_learning_rate());
    }
  }
  for (const PhaseModel& model : models_) {
    if (!model.trained || model.adapter == nullptr) continue;
    for (const model::Adapter::AtLinear* const at : model.adapter->triplets()) {
      const std::pair<int, v1::Sensitivity::By> scored[] = {
          {at->a, v1::Sensitivity::ROWS}, {at->b, v1::Sensitivity::COLUMNS}, {at->e, v1::Sensitivity::ELEMENTS}};
      for (const auto& [tensor, by] : scored) {
        v1::Sensitivity& sensitivity =
            *table.mutable_tensors(static_cast<int>(PlaceOf(model, tensor)))->mutable_sensitivity();
        sensitivity.set_by(by);
        sensitivity.set_decay(model.adapter->spec().importance_decay(0));
        sensitivity.set_uncertainty_decay(model.adapter->spec().importance_decay(1));
      }
    }
  }
  std::vector<v1::Tensor*> first;
  for (const int place : models_[0].places) first.push_back(table.mutable_tensors(place));
  MILLRACE_RETURN_IF_ERROR(Choose(phase.trainable(), models_[0].network->groups(), first));
  for (const v1::Tensor& tensor : table.tensors()) {
    if (!tensor.has_sensitivity() || tensor.trainable()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("trainable.freeze: ", tensor.name(), " cannot be frozen: AdaLoRA trains all of its tensors"));
  }
  return table;
}

std::vector<v1::Pruning> PhaseModels::Prunings() const {
  std::vector<v1::Pruning> prunings;
  for (const PhaseModel& model : models_) {
    if (!model.trained || model.adapter == nullptr || model.adapter->triplets().empty()) continue;
    const v1::AdapterSpec& spec = model.adapter->spec();
    v1::Pruning& pruning = prunings.emplace_back();
    for (const model::Adapter::AtLinear* const at : model.adapter->triplets()) {
      v1::Pruning::Group& group = *pruning.add_groups();
      group.set_elements(PlaceOf(model, at->e));
      group.add_beside(PlaceOf(model, at->a));
      group.add_beside(PlaceOf(model, at->b));
    }
    pruning.set_kept(uint64_t{spec.target_rank()} * static_cast<uint64_t>(pruning.groups_size()));
    pruning.set_warmup_steps(spec.warmup_steps());
    pruning.set_final_steps(spec.final_steps());
    pruning.set_every_steps(spec.allocate_every());
  }
  return prunings;
}

}  // namespace millrace::worker
