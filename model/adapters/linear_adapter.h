// Computes what adapters change at linear layers, forward and backward (formulas: adapter.h).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/philox.h"
#include "kernels/compute.h"
#include "model/adapters/adapter.h"
#include "model/arena.h"
#include "model/layers/dropout.h"
#include "model/layers/linear.h"

namespace millrace::model {

// What passes through an adapter's linear layers keep. For training each has its own, else all share one.
class LinearAdapterMemory {
 public:
  LinearAdapterMemory() = default;
  // For up to `tokens` tokens. RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<LinearAdapterMemory> Create(const Adapter& adapter, absl::Span<const LinearSite> sites,
                                                    int64_t tokens, bool for_training);

  struct Site {
    float* low = nullptr;     // [tokens, rank]: A drop(x); AdaLoRA only
    float* scaled = nullptr;  // [tokens, rank]: s (E ⊙) A drop(x)
    float* plain = nullptr;   // [tokens, outputs]: of DoRA and IA3, before magnitudes or scales
    float* norms = nullptr;   // [outputs]: DoRA's n
  };
  const Site& at(size_t layer, Module module) const { return sites_[layer * kModules + static_cast<size_t>(module)]; }
  // Of one pass at a time: as wide as the widest layer.
  float* d_low() const { return d_low_; }    // [tokens, rank]
  float* input() const { return input_; }    // [tokens, inputs]
  float* output() const { return output_; }  // [tokens, outputs]
  float* matrix() const { return matrix_; }  // [outputs, inputs]: DoRA only
  int64_t tokens() const { return tokens_; }

 private:
  std::vector<Site> sites_;
  float *d_low_ = nullptr, *input_ = nullptr, *output_ = nullptr, *matrix_ = nullptr;
  int64_t tokens_ = 0;
  Arena arena_;
};

// An adapter at one linear layer, in one pass.
struct LinearAdapterPass {
  const Adapter& adapter;
  const Adapter::AtLinear& at;
  const float* weights;  // of the adapter, laid out as its tensors
  const LinearAdapterMemory& memory;
  const LinearAdapterMemory::Site& kept;
  Dropout dropout;           // of low-rank products' inputs; rate 0: none
  bool norms_known = false;  // DoRA's are those that are kept
};

// Whether the layer is to be computed without its bias, which AdaptOutput adds.
inline bool AddsBias(const Adapter::AtLinear& at) { return at.magnitude >= 0; }

// What the layer itself is to read instead of x [rows, inputs]: x, unless IA3 scales it.
const float* AdaptedInput(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                          const float* x, int64_t rows);

// y[rows, outputs], `y_stride` apart, is what the layer made of AdaptedInput; becomes the adapted outputs. `weight` and
// `bias`, which may be null, are the layer's.
void AdaptOutput(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear, const float* x,
                 int64_t rows, const float* weight, const float* bias, float* y, int64_t y_stride);

// dy: the gradient of the adapted outputs becomes that of the layer's own. Adds the gradients of the adapter's tensors
// to `gradients`, laid out as they are, but for IA3's scales of inputs.
void AdaptedOutputBackward(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                           const float* x, int64_t rows, float* dy, int64_t dy_stride, float* gradients);

// After the layer's own backward pass, which has written the gradient of AdaptedInput to memory.input() if IA3 scales
// it, or else to dx (added it there): makes dx whole. dx may be null: not wanted. `accumulate`: dx held something
// before.
void AdaptedInputBackward(const kernels::Compute& compute, const LinearAdapterPass& pass, const Linear& linear,
                          const float* x, int64_t rows, float* dx, bool accumulate, float* gradients);

// [outputs]: the norms of the rows of W + s B A, or of W alone without `adapter_weights`. `matrix`: memory for
// [outputs, inputs].
void RowNorms(const kernels::Compute& compute, const Adapter& adapter, const Adapter::AtLinear& at,
              const float* adapter_weights, const Linear& linear, const float* weight, float* matrix, float* norms);

// Makes what the adapter does at a layer part of its weight and of its bias, which may be null. Requires an adapter
// that merges.
void MergeLinear(const kernels::Compute& compute, const Adapter& adapter, const Adapter::AtLinear& at,
                 const float* adapter_weights, const Linear& linear, float* weight, float* bias);

}  // namespace millrace::model
