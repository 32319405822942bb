#include "worker/phase_models.h"

#include <fnmatch.h>

#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/job_file.h"
#include "common/status.h"
#include "model/tensor_list.h"

namespace millrace::worker {
namespace {

bool Matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), /*flags=*/0) == 0;
}

// Which tensors of a model are trained, and how fast. `groups`: of the model. INVALID_ARGUMENT for a pattern that
// matches no tensor, and if nothing is left to train.
absl::Status Choose(const v1::TrainableSpec& spec, uint32_t groups, v1::TensorTable* table) {
  const auto each = [table](const std::string& pattern, absl::FunctionRef<void(v1::Tensor&)> act) -> absl::Status {
    bool matched = false;
    for (v1::Tensor& tensor : *table->mutable_tensors()) {
      if (!Matches(pattern, tensor.name())) continue;
      matched = true;
      act(tensor);
    }
    if (matched) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("trainable: no tensor is called '", pattern,
                                                   "'; the model has tensors such as ", table->tensors(0).name(),
                                                   " and ", table->tensors(table->tensors_size() / 2).name()));
  };
  if (spec.has_last_layers()) {
    // Groups: the embeddings, the layers, and what follows them.
    for (v1::Tensor& tensor : *table->mutable_tensors()) {
      tensor.set_trainable(tensor.group() + spec.last_layers() + 1 >= groups);
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
  for (const v1::Tensor& tensor : table->tensors()) {
    if (tensor.trainable()) return absl::OkStatus();
  }
  return absl::InvalidArgumentError("trainable: everything is frozen; nothing is left to train");
}

void AddTensors(const PhaseModel& model, v1::TensorTable* table) {
  for (const model::TensorSpec& spec : model.decoder->tensors().tensors()) {
    v1::Tensor* const tensor = table->add_tensors();
    tensor->set_name(absl::StrCat(model.part.prefix(), spec.name));
    for (const int64_t extent : spec.shape) tensor->add_shape(extent);
    tensor->set_trainable(model.trained);
    switch (spec.role) {
      case model::Role::kMatrix:
        tensor->set_role(v1::Tensor::MATRIX);
        break;
      case model::Role::kEmbedding:
        tensor->set_role(v1::Tensor::EMBEDDING);
        break;
      case model::Role::kVector:
        tensor->set_role(v1::Tensor::VECTOR);
        break;
    }
    tensor->set_rows_are_inputs(spec.rows_are_inputs);
    tensor->set_group(model.first_group + spec.group);
  }
}

struct Wanted {
  v1::ModelPart part;
  model::Head head = model::Head::kLanguage;
  bool trained = false;
};

std::vector<Wanted> WantedModels(const v1::PhaseSpec& phase) {
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  std::vector<Wanted> wanted(1);
  wanted[0].trained = true;
  wanted[0].part.set_file("model.safetensors");
  if (traits.trains_rewards) wanted[0].head = model::Head::kScalar;
  const auto add = [&](absl::string_view prefix, const std::string& from, model::Head head) -> Wanted& {
    Wanted& added = wanted.emplace_back();
    added.part.set_prefix(std::string(prefix));
    added.part.set_from(from);
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
    value.part.set_file("value.safetensors");
  }
  if (phase.compare().from_size() > 0) wanted[0].part.set_from(phase.compare().from(0));
  if (phase.compare().from_size() > 1) add(kOther, phase.compare().from(1), model::Head::kLanguage);
  if (traits.has_reference) add(kReference, phase.reference(), model::Head::kLanguage);
  for (int i = 0; i < phase.rewards_size(); ++i) {
    if (phase.rewards(i).type() == "model") add(RewardPrefix(i), phase.rewards(i).from(), model::Head::kScalar);
  }
  return wanted;
}

std::string KeyOf(const v1::PhaseContext& context) {
  std::string key = absl::StrCat(context.model().SerializeAsString(), "\n", context.vocab_size(), "\n", context.seed());
  for (const Wanted& wanted : WantedModels(context.phase())) {
    absl::StrAppend(&key, "\n", wanted.part.prefix(), " ", wanted.part.from(), " ", static_cast<int>(wanted.head),
                    wanted.trained);
  }
  return key;
}

}  // namespace

std::string RewardPrefix(int index) { return absl::StrCat("reward", index, "/"); }

absl::StatusOr<std::unique_ptr<PhaseModels>> PhaseModels::Create(const v1::PhaseContext& context) {
  auto made = std::unique_ptr<PhaseModels>(new PhaseModels());
  made->key_ = KeyOf(context);
  for (Wanted& wanted : WantedModels(context.phase())) {
    PhaseModel& model = made->models_.emplace_back();
    model.part = std::move(wanted.part);
    model.trained = wanted.trained;
    MILLRACE_ASSIGN_OR_RETURN(model.decoder,
                              model::Decoder::Create(context.model(), context.vocab_size(), wanted.head));
    const model::TensorList& tensors = model.decoder->tensors();
    model.first_tensor = static_cast<int>(made->offsets_.size());
    model.first_group = made->groups_;
    model.offset = made->floats_;
    for (const model::TensorSpec& tensor : tensors.tensors()) made->offsets_.push_back(model.offset + tensor.offset);
    made->groups_ += model.decoder->groups();
    made->floats_ += tensors.floats();
    if (model.trained) made->trained_floats_ = made->floats_;
    // A scalar head may go on a model that had another.
    if (const int score = model.decoder->score(); score >= 0) {
      std::vector<float> values(static_cast<size_t>(tensors[score].size));
      model::StartValues(tensors[score], score, context.seed(), 0, absl::MakeSpan(values));
      (*model.part.mutable_fresh())[tensors[score].name] =
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      model.part.add_dropped("lm_head.weight");
    }
  }
  return made;
}

bool PhaseModels::Fits(const v1::PhaseContext& context) const { return KeyOf(context) == key_; }

const PhaseModel* PhaseModels::Find(absl::string_view prefix) const {
  for (const PhaseModel& model : models_) {
    if (model.part.prefix() == prefix) return &model;
  }
  return nullptr;
}

absl::StatusOr<v1::TensorTable> PhaseModels::Table(const v1::PhaseSpec& phase) const {
  v1::TensorTable table;
  AddTensors(models_[0], &table);
  MILLRACE_RETURN_IF_ERROR(Choose(phase.trainable(), models_[0].decoder->groups(), &table));
  for (const PhaseModel& model : models()) {
    if (&model == &models_[0]) continue;
    const int first = table.tensors_size();
    AddTensors(model, &table);
    if (!model.trained) continue;
    for (int i = first; i < table.tensors_size(); ++i) {
      table.mutable_tensors(i)->set_learning_rate_multiplier(phase.policy().value_learning_rate());
    }
  }
  return table;
}

}  // namespace millrace::worker
