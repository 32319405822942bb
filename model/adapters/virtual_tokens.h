// Makes the virtual tokens that some adapters put before the text (adapter.h): takes them as they are, or computes them
// by a small network of trained inputs.
//
//   p_tuning:       W2 relu(W1 relu(W0 x + b0) + b1) + b2, or W1 relu(W0 lstm(lstm(x)) + b0) + b1 (prompt_lstm.h),
//                   where either lstm goes both ways through the tokens and puts what it makes side by side
//   prefix_tuning:  W1 tanh(W0 x + b0) + b1
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/compute.h"
#include "model/adapters/adapter.h"
#include "model/adapters/prompt_lstm.h"
#include "model/arena.h"

namespace millrace::model {

// Holds what the backward pass needs; one thread at a time.
class VirtualTokens {
 public:
  VirtualTokens() = default;
  // `adapter` outlives this. RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<VirtualTokens> Create(const Adapter* adapter, bool for_training);

  // [virtual_tokens, virtual_width], until the next call. `weights` is laid out as the adapter's tensors.
  const float* Forward(const kernels::Compute& compute, const float* weights);
  // What was made last.
  const float* values() const { return values_; }

  // Where the gradient of the values is to be added up before Backward; zeros after Forward. For training only.
  float* d_values() const { return d_values_; }
  // After Forward: adds the gradients of the adapter's tensors to `gradients`, laid out as they are.
  void Backward(const kernels::Compute& compute, const float* weights, float* gradients);

 private:
  struct LstmLayer {
    PromptLstmMemory forward, reverse;
    float* out = nullptr;    // [virtual_tokens, 2 hidden]: forward's, then reverse's
    float* d_out = nullptr;  // its gradient
  };

  PromptLstm LstmShape(size_t layer, bool reverse) const;

  const Adapter* adapter_ = nullptr;
  const float* values_ = nullptr;
  std::vector<LstmLayer> lstms_;
  std::vector<float*> layers_;    // outputs of each linear layer of the network, [virtual_tokens, its width]
  std::vector<float*> d_layers_;  // their gradients; the last one's is d_values_
  float* d_values_ = nullptr;
  Arena arena_;
};

}  // namespace millrace::model
