// Adds to a network's list the tensors that transformers are made of.
#pragma once

#include <cstdint>
#include <string>

#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/tensor_list.h"

namespace millrace::model {

// NAME, [size], zeros.
int AddBias(TensorList* tensors, const std::string& name, int64_t size, uint32_t group);

// NAME.weight, [inputs, outputs] if its rows are inputs, else [outputs, inputs], normal deviates; and with `bias`
// NAME.bias.
struct LinearStart {
  int64_t inputs = 0;
  int64_t outputs = 0;
  bool rows_are_inputs = false;
  bool bias = true;
  double std = 0;
};
LinearTensors AddLinear(TensorList* tensors, const std::string& name, const LinearStart& start, uint32_t group);

// NAME.weight, [size], ones; and with `bias` NAME.bias.
NormTensors AddNorm(TensorList* tensors, const std::string& name, int64_t size, bool bias, uint32_t group);

}  // namespace millrace::model
