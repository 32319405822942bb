// Computes a layer of long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers,
// Schmidhuber and Cummins 2000). For each token of a sequence, with h' and c' of the one before it, zeros at first:
//
//   i, f, g, o = W_ih x + W_hh h' + b        each [hidden_size], in this order, as PyTorch has them; one bias
//   c = sigmoid(f) c' + sigmoid(i) tanh(g)
//   h = sigmoid(o) tanh(c),   y = dropout(h)
#pragma once

#include <cstdint>
#include <string>

#include "kernels/product.h"
#include "model/layers/causal_layer.h"
#include "model/layers/linear.h"
#include "model/tensor_list.h"

namespace millrace::model {

class LstmLayer : public CausalLayer {
 public:
  // Adds its tensors to the list, which outlives it: weight_ih_l`index`, weight_hh_l`index` [4 hidden_size,
  // hidden_size] and bias_l`index` [4 hidden_size] behind the prefix.
  LstmLayer(int64_t hidden_size, kernels::Precision precision, const std::string& prefix, uint32_t index,
            TensorList* tensors);

  int first_tensor() const override { return input_; }
  int64_t kept_size() const override { return 7 * hidden_size_; }
  int64_t scratch_size(bool) const override { return 0; }
  // h and c.
  int64_t state_size() const override { return 2 * hidden_size_; }
  void Forward(const CausalPass& pass, const float* x, float* states, float* kept, float* y) const override;
  void Backward(const CausalPass& pass, const float* x, float* kept, float* dy, bool input_wanted, Trainable trainable,
                float* gradients) const override;

 private:
  // Parts of what is kept.
  struct Kept {
    float* gates = nullptr;      // [rows, 4 hidden_size]: behind sigmoid and tanh; in Backward their gradients
    float* cells = nullptr;      // [rows, hidden_size]: c
    float* activated = nullptr;  // [rows, hidden_size]: tanh(c)
    float* before = nullptr;     // [rows, hidden_size]: h'
  };
  Kept PartsOf(float* kept, int64_t rows) const;

  const int64_t hidden_size_;
  const Linear linear_;
  const TensorList& tensors_;
  int input_, recurrent_, bias_;
};

}  // namespace millrace::model
