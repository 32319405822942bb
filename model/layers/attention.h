// Computes causal multi-head attention (Vaswani et al. 2017), with fewer heads of keys and values than of queries if
// wanted (grouped-query attention; Ainslie et al. 2023).
//
//   S = Q Kᵀ / sqrt(head_size), P = softmax over the positions up to the row's own, O = dropout(P) V
//
// Products go by blocks of 64 rows and leave out what lies behind the diagonal. Each head is one thread's.
#pragma once

#include <cstdint>

#include "kernels/compute.h"
#include "kernels/product.h"
#include "model/layers/dropout.h"

namespace millrace::model {

struct AttentionShape {
  int64_t rows = 0;     // sequences
  int64_t columns = 0;  // tokens a sequence
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads; head h looks at keys and values h / (heads / kv_heads)
  int64_t head_size = 0;
  int64_t stride = 0;  // floats from one token's queries (keys, values) to the next one's
  kernels::Precision precision = kernels::Precision::kF32;

  int64_t tokens() const { return rows * columns; }
};

// q: `heads` heads a token, k and v: `kv_heads` heads, each of tokens `stride` apart. Keeps P before dropout in
// `probabilities` [rows, heads, columns, columns] if `keep`; else one [columns, columns] a thread is used and
// `probabilities` may be null. out: [tokens, heads * head_size].
void AttentionForward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                      const float* v, const Dropout& dropout, bool keep, float* probabilities, float* out);

// dq, dk and dv, laid out as q, k and v, become the gradients.
void AttentionBackward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                       const float* v, const Dropout& dropout, const float* probabilities, const float* dout, float* dq,
                       float* dk, float* dv);

// Queries of `count` tokens at positions [past, past + count) of one sequence look at its keys and values
// [past + count, kv_heads, head_size]. q: `stride` apart; out: [count, heads * head_size]. The same bits as
// AttentionForward's without dropout.
void AttentionExtend(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* keys,
                     const float* values, int64_t past, int64_t count, float* out);

}  // namespace millrace::model
