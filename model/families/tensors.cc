#include "model/families/tensors.h"

#include <utility>
#include <vector>

namespace millrace::model {

int AddBias(TensorList* tensors, const std::string& name, int64_t size, uint32_t group) {
  TensorSpec bias;
  bias.name = name;
  bias.shape = {size};
  bias.group = group;
  return tensors->Add(std::move(bias));
}

LinearTensors AddLinear(TensorList* tensors, const std::string& name, const LinearStart& start, uint32_t group) {
  TensorSpec weight;
  weight.name = name + ".weight";
  weight.shape = start.rows_are_inputs ? std::vector<int64_t>{start.inputs, start.outputs}
                                       : std::vector<int64_t>{start.outputs, start.inputs};
  weight.role = Role::kMatrix;
  weight.rows_are_inputs = start.rows_are_inputs;
  weight.group = group;
  weight.start = Start::kNormal;
  weight.start_size = static_cast<float>(start.std);
  LinearTensors added;
  added.weight = tensors->Add(std::move(weight));
  if (start.bias) added.bias = AddBias(tensors, name + ".bias", start.outputs, group);
  return added;
}

NormTensors AddNorm(TensorList* tensors, const std::string& name, int64_t size, bool bias, uint32_t group) {
  TensorSpec gain;
  gain.name = name + ".weight";
  gain.shape = {size};
  gain.group = group;
  gain.start = Start::kOnes;
  NormTensors added;
  added.gain = tensors->Add(std::move(gain));
  if (bias) added.bias = AddBias(tensors, name + ".bias", size, group);
  return added;
}

}  // namespace millrace::model
