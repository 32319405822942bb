#include "model/adapters/virtual_tokens.h"

#include <algorithm>

#include "common/status.h"
#include "kernels/functions.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"

namespace millrace::model {
namespace {

Linear ShapeOf(const Adapter& adapter, size_t layer) {
  const std::vector<int64_t>& shape = adapter.tensors()[adapter.encoder().weights[layer]].shape;
  return {shape[1], shape[0]};
}

bool UsesTanh(const Adapter& adapter) { return adapter.spec().type() == "prefix_tuning"; }

}  // namespace

absl::StatusOr<VirtualTokens> VirtualTokens::Create(const Adapter* adapter, bool for_training) {
  VirtualTokens made;
  made.adapter_ = adapter;
  const int64_t tokens = adapter->virtual_tokens();
  const size_t layers = adapter->encoder().weights.size();
  made.layers_.resize(layers);
  made.d_layers_.resize(layers);
  const auto lay_out = [&](Arena* arena) {
    for (size_t i = 0; i < layers; ++i) {
      made.layers_[i] = arena->Take(tokens * ShapeOf(*adapter, i).outputs);
      if (for_training && i + 1 < layers) made.d_layers_[i] = arena->Take(tokens * ShapeOf(*adapter, i).outputs);
    }
    if (for_training) made.d_values_ = arena->Take(tokens * adapter->virtual_width());
    if (layers > 0) made.d_layers_.back() = made.d_values_;
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(made.arena_, Arena::Create(measure.taken()));
  lay_out(&made.arena_);
  return made;
}

const float* VirtualTokens::Forward(const kernels::Compute& compute, const float* weights) {
  const Adapter::Encoder& encoder = adapter_->encoder();
  const TensorList& tensors = adapter_->tensors();
  const int64_t rows = adapter_->virtual_tokens();
  values_ = weights + tensors[encoder.table].offset;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Linear linear = ShapeOf(*adapter_, i);
    const float* const x = values_;
    LinearForward(compute, linear, x, rows, weights + tensors[encoder.weights[i]].offset,
                  weights + tensors[encoder.biases[i]].offset, layers_[i], linear.outputs);
    values_ = layers_[i];
    if (i + 1 == layers_.size()) break;
    if (UsesTanh(*adapter_)) {
      kernels::Tanh(layers_[i], layers_[i], rows * linear.outputs);
    } else {
      for (int64_t j = 0; j < rows * linear.outputs; ++j) layers_[i][j] = std::max(layers_[i][j], 0.0f);
    }
  }
  if (d_values_ != nullptr) std::fill_n(d_values_, rows * adapter_->virtual_width(), 0.0f);
  return values_;
}

void VirtualTokens::Backward(const kernels::Compute& compute, const float* weights, float* gradients) {
  const Adapter::Encoder& encoder = adapter_->encoder();
  const TensorList& tensors = adapter_->tensors();
  const int64_t rows = adapter_->virtual_tokens();
  float* const d_table = gradients + tensors[encoder.table].offset;
  if (layers_.empty()) {
    kernels::Add(compute, d_values_, rows * adapter_->virtual_width(), d_table);
    return;
  }
  for (size_t i = layers_.size(); i-- > 0;) {
    const Linear linear = ShapeOf(*adapter_, i);
    const float* const x = i > 0 ? layers_[i - 1] : weights + tensors[encoder.table].offset;
    float* const dx = i > 0 ? d_layers_[i - 1] : d_table;
    LinearBackward(compute, linear, x, rows, weights + tensors[encoder.weights[i]].offset, d_layers_[i], linear.outputs,
                   dx, /*accumulate=*/i == 0, gradients + tensors[encoder.weights[i]].offset,
                   gradients + tensors[encoder.biases[i]].offset);
    if (i == 0) break;
    for (int64_t j = 0; j < rows * linear.inputs; ++j) {
      dx[j] *= UsesTanh(*adapter_) ? 1.0f - x[j] * x[j] : x[j] > 0.0f ? 1.0f : 0.0f;
    }
  }
}

}  // namespace millrace::model
