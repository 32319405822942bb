// Computes a residual block of a gated convolution over a token and the ones before it (Dauphin et al. 2017, "Language
// Modeling with Gated Convolutional Networks", equation 1):
//
//   y = x + dropout((W * n + b) ⊙ sigmoid(V * n + c)),   n = LayerNorm(x)
//
// where * looks at the token's own n and those of the kernel_size - 1 tokens before it, zeros before the first. A stack
// of L blocks sees L (kernel_size - 1) + 1 tokens. The paper normalises weights instead and has the residual around
// several convolutions.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/product.h"
#include "model/layers/causal_layer.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/tensor_list.h"

namespace millrace::model {

class GatedConvolution : public CausalLayer {
 public:
  // Adds its tensors to the list, which outlives it: norm.weight, norm.bias [hidden_size], conv.weight [2 hidden_size,
  // kernel_size * hidden_size]: W's rows, then V's, columns by token, the oldest first; conv.bias [2 hidden_size].
  GatedConvolution(int64_t hidden_size, int64_t kernel_size, float epsilon, kernels::Precision precision,
                   const std::string& prefix, uint32_t group, TensorList* tensors);

  int first_tensor() const override { return norm_.gain; }
  int64_t kept_size() const override { return 3 * hidden_size_ + 2; }
  int64_t scratch_size(bool for_training) const override {
    return for_training ? (2 * kernel_size_ + 1) * hidden_size_ : kernel_size_ * hidden_size_;
  }
  // n of the last kernel_size - 1 tokens, the oldest first.
  int64_t state_size() const override { return (kernel_size_ - 1) * hidden_size_; }
  void Forward(const CausalPass& pass, const float* x, float* states, float* kept, float* y) const override;
  void Backward(const CausalPass& pass, const float* x, float* kept, float* dy, bool input_wanted, Trainable trainable,
                float* gradients) const override;

 private:
  // Parts of what is kept.
  struct Kept {
    float* normed = nullptr;  // [rows, hidden_size]
    float* halves = nullptr;  // [rows, 2 hidden_size]: W * n + b, sigmoid(V * n + c); in Backward their gradients
    float* mean = nullptr;    // [rows]
    float* rstd = nullptr;    // [rows]
  };
  Kept PartsOf(float* kept, int64_t rows) const;
  // unfolded [rows, kernel_size, hidden_size]: what each token looks at.
  void Unfold(const CausalPass& pass, const float* normed, const float* states, float* unfolded) const;

  const int64_t hidden_size_, kernel_size_;
  const float epsilon_;
  const Linear linear_;
  const TensorList& tensors_;
  NormTensors norm_;
  LinearTensors convolution_;
};

}  // namespace millrace::model
