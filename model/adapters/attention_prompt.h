// Computes LLaMA-Adapter's attention to a prompt of its own (adapter.h), whose keys and values every token sees.
//
//   out += g A,  A = softmax(Q K(P)ᵀ / sqrt(head_size)) V(P)
#pragma once

#include <cstdint>

#include "kernels/compute.h"
#include "model/layers/attention.h"

namespace millrace::model {

// Of `shape`, rows, columns and sequences have no part in this; queries, and the prompt's keys and values
// [prompt_tokens], lie `stride` apart.
struct AttentionPrompt {
  const float* queries = nullptr;
  int64_t tokens = 0;
  const float* keys = nullptr;
  const float* values = nullptr;
  int64_t prompt_tokens = 0;
  float gate = 0;
};

// Keeps softmax's results in `probabilities` [heads, tokens, prompt_tokens] and A in `attended` [tokens, heads *
// head_size]. out: as A.
void AttentionPromptForward(const kernels::Compute& compute, const AttentionShape& shape, const AttentionPrompt& prompt,
                            float* probabilities, float* attended, float* out);

// dq += …; dk and dv [prompt_tokens], `stride` apart, become the gradients; dgate += …; `attended` is destroyed.
void AttentionPromptBackward(const kernels::Compute& compute, const AttentionShape& shape,
                             const AttentionPrompt& prompt, const float* probabilities, float* attended,
                             const float* dout, float* dq, float* dk, float* dv, float* dgate);

}  // namespace millrace::model
