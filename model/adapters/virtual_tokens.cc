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

template <typename Float>
PromptLstmTensors<Float> TensorsOf(const Adapter& adapter, const Adapter::Encoder::Direction& direction, Float* base) {
  const TensorList& tensors = adapter.tensors();
  return {base + tensors[direction.weight_ih].offset, base + tensors[direction.weight_hh].offset,
          base + tensors[direction.bias_ih].offset, base + tensors[direction.bias_hh].offset};
}

bool UsesTanh(const Adapter& adapter) { return adapter.spec().type() == "prefix_tuning"; }

}  // namespace

PromptLstm VirtualTokens::LstmShape(size_t layer, bool reverse) const {
  const std::vector<int64_t>& shape =
      adapter_->tensors()[adapter_->encoder().lstms[layer].forward.weight_ih].shape;  // [4 hidden, inputs]
  return {adapter_->virtual_tokens(), shape[1], shape[0] / 4, reverse};
}

absl::StatusOr<VirtualTokens> VirtualTokens::Create(const Adapter* adapter, bool for_training) {
  VirtualTokens made;
  made.adapter_ = adapter;
  const int64_t tokens = adapter->virtual_tokens();
  const size_t layers = adapter->encoder().weights.size();
  made.layers_.resize(layers);
  made.d_layers_.resize(layers);
  made.lstms_.resize(adapter->encoder().lstms.size());
  const auto lay_out = [&](Arena* arena) {
    for (size_t i = 0; i < made.lstms_.size(); ++i) {
      LstmLayer& layer = made.lstms_[i];
      const int64_t hidden = made.LstmShape(i, false).hidden;
      for (PromptLstmMemory* memory : {&layer.forward, &layer.reverse}) {
        *memory = {arena->Take(tokens * 4 * hidden), arena->Take(tokens * hidden), arena->Take(tokens * hidden),
                   arena->Take(4 * hidden)};
      }
      layer.out = arena->Take(tokens * 2 * hidden);
      if (for_training) layer.d_out = arena->Take(tokens * 2 * hidden);
    }
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
  for (size_t i = 0; i < lstms_.size(); ++i) {
    const PromptLstm shape = LstmShape(i, false);
    const LstmLayer& layer = lstms_[i];
    PromptLstmForward(compute, shape, TensorsOf(*adapter_, encoder.lstms[i].forward, weights), values_, layer.forward,
                      layer.out, 2 * shape.hidden);
    PromptLstmForward(compute, LstmShape(i, true), TensorsOf(*adapter_, encoder.lstms[i].reverse, weights), values_,
                      layer.reverse, layer.out + shape.hidden, 2 * shape.hidden);
    values_ = layer.out;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Linear linear = ShapeOf(*adapter_, i);
    const float* const x = values_;
    LinearForward(compute, linear, x, rows, weights + tensors[encoder.weights[i]].offset,
                  weights + tensors[encoder.biases[i]].offset, layers_[i], linear.outputs);
    values_ = layers_[i];
    if (i + 1 == layers_.size()) break;
    if (UsesTanh(*adapter_)) {
      kernels::Tanh(compute.isa(), layers_[i], layers_[i], rows * linear.outputs);
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
  const float* const table = weights + tensors[encoder.table].offset;
  for (size_t i = layers_.size(); i-- > 0;) {
    const Linear linear = ShapeOf(*adapter_, i);
    const float* const x = i > 0 ? layers_[i - 1] : lstms_.empty() ? table : lstms_.back().out;
    float* const dx = i > 0 ? d_layers_[i - 1] : lstms_.empty() ? d_table : lstms_.back().d_out;
    LinearBackward(compute, linear, x, rows, weights + tensors[encoder.weights[i]].offset, d_layers_[i], linear.outputs,
                   dx, /*accumulate=*/dx == d_table, gradients + tensors[encoder.weights[i]].offset,
                   gradients + tensors[encoder.biases[i]].offset);
    if (i == 0) break;
    for (int64_t j = 0; j < rows * linear.inputs; ++j) {
      dx[j] *= UsesTanh(*adapter_) ? 1.0f - x[j] * x[j] : x[j] > 0.0f ? 1.0f : 0.0f;
    }
  }
  for (size_t i = lstms_.size(); i-- > 0;) {
    const PromptLstm shape = LstmShape(i, false);
    const LstmLayer& layer = lstms_[i];
    const float* const x = i > 0 ? lstms_[i - 1].out : table;
    float* const dx = i > 0 ? lstms_[i - 1].d_out : d_table;
    if (i > 0) std::fill_n(dx, rows * shape.inputs, 0.0f);
    const Adapter::Encoder::Lstm& at = encoder.lstms[i];
    PromptLstmBackward(compute, shape, TensorsOf(*adapter_, at.forward, weights), x, layer.forward, layer.out,
                       layer.d_out, 2 * shape.hidden, dx, TensorsOf(*adapter_, at.forward, gradients));
    PromptLstmBackward(compute, LstmShape(i, true), TensorsOf(*adapter_, at.reverse, weights), x, layer.reverse,
                       layer.out + shape.hidden, layer.d_out + shape.hidden, 2 * shape.hidden, dx,
                       TensorsOf(*adapter_, at.reverse, gradients));
  }
}

}  // namespace millrace::model
