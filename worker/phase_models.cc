#include "worker/phase_models.h"

#include <fnmatch.h>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::worker {
namespace {

bool Matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), /*flags=*/0) == 0;
}

// Which tensors are trained, and how fast. `groups`: of the model. INVALID_ARGUMENT for a pattern that matches no
// tensor, and if nothing is left to train.
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

void AddTensors(const model::Decoder& decoder, v1::TensorTable* table) {
  for (const model::TensorSpec& spec : decoder.tensors().tensors()) {
    v1::Tensor* const tensor = table->add_tensors();
    tensor->set_name(spec.name);
    for (const int64_t extent : spec.shape) tensor->add_shape(extent);
    tensor->set_trainable(true);
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
    tensor->set_group(spec.group);
  }
}

}  // namespace

absl::StatusOr<v1::TensorTable> TableOf(const model::Decoder& decoder, const v1::PhaseSpec& phase) {
  v1::TensorTable table;
  AddTensors(decoder, &table);
  MILLRACE_RETURN_IF_ERROR(Choose(phase.trainable(), decoder.groups(), &table));
  return table;
}

std::vector<v1::ModelPart> PartsOf() {
  std::vector<v1::ModelPart> parts(1);
  parts[0].set_file("model.safetensors");
  return parts;
}

}  // namespace millrace::worker
