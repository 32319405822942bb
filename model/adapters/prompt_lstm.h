// Runs one direction of a layer of long short-term memory (Hochreiter and Schmidhuber 1997, with Gers et al. 2000's
// forget gate) over the one sequence of a prompt's tokens. Gates lie in the order i, f, g, o:
//
//   (i, f, g, o) = W x_t + b + U h_before + d,  c_t = σ(f) c_before + σ(i) tanh(g),  h_t = σ(o) tanh(c_t)
//
// from a state of zeros, either way through the tokens.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::model {

struct PromptLstm {
  int64_t tokens = 0;
  int64_t inputs = 0;
  int64_t hidden = 0;
  bool reverse = false;  // from the last token to the first
};

// Of weights, or of their gradients.
template <typename Float>
struct PromptLstmTensors {
  Float* weight_ih = nullptr;  // W [4 hidden, inputs]
  Float* weight_hh = nullptr;  // U [4 hidden, hidden]
  Float* bias_ih = nullptr;    // b [4 hidden]
  Float* bias_hh = nullptr;    // d [4 hidden]
};

// What a forward pass leaves for the backward one.
struct PromptLstmMemory {
  float* gates = nullptr;     // [tokens, 4 hidden], behind σ or tanh
  float* cells = nullptr;     // [tokens, hidden]: c
  float* squashed = nullptr;  // [tokens, hidden]: tanh(c)
  float* scratch = nullptr;   // [4 hidden]
};

// h of each token goes to `out`, whose rows are `stride` apart.
void PromptLstmForward(const kernels::Compute& compute, const PromptLstm& lstm,
                       const PromptLstmTensors<const float>& weights, const float* x, const PromptLstmMemory& memory,
                       float* out, int64_t stride);

// After Forward. `out` and `d_out` have rows `stride` apart. Adds to the gradients of the weights and to dx; the
// memory's gates are destroyed.
void PromptLstmBackward(const kernels::Compute& compute, const PromptLstm& lstm,
                        const PromptLstmTensors<const float>& weights, const float* x, const PromptLstmMemory& memory,
                        const float* out, const float* d_out, int64_t stride, float* dx,
                        const PromptLstmTensors<float>& gradients);

}  // namespace millrace::model
