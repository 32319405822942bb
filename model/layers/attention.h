// Computes multi-head attention (Vaswani et al. 2017), with fewer heads of keys and values than of queries if wanted
// (grouped-query attention; Ainslie et al. 2023).
//
//   S = Q Kᵀ / sqrt(head_size), P = softmax over the positions up to the row's own, O = dropout(P) V
//
// In an encoder, whose attention is not causal, P goes over all of the sequence's positions.
//
// With a sliding window (Beltagy et al. 2020, "Longformer"; Mistral's, Jiang et al. 2023) of the last `window` of those
// positions only, the row's own being one of them. Products go by blocks of 64 rows and leave out what lies behind the
// diagonal and before the window. Each head is one thread's.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/compute.h"
#include "kernels/product.h"
#include "model/layers/dropout.h"

namespace millrace::model {

// Tokens that see each other, one after another: [first, first + length) of all.
struct Sequence {
  int64_t first = 0;
  int64_t length = 0;
};

// Keys and values that come before those of every sequence: [tokens, kv_heads, head_size], tokens `stride` apart.
struct Past {
  int64_t tokens = 0;
  const float* keys = nullptr;
  const float* values = nullptr;
  int64_t stride = 0;
};

struct AttentionShape {
  int64_t rows = 0;
  int64_t columns = 0;  // tokens a row
  // Of rows that hold several; they cover all tokens and none crosses the end of a row. Empty: each row is one.
  absl::Span<const Sequence> sequences;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads; head h looks at keys and values h / (heads / kv_heads)
  int64_t head_size = 0;
  int64_t stride = 0;  // floats from one token's queries (keys, values) to the next one's
  bool causal = true;  // false: a token sees those behind it too. Requires no window and no past
  int64_t window = 0;  // positions that a token sees, its own and those before it; 0: all
  kernels::Precision precision = kernels::Precision::kF32;
  Past past;

  int64_t tokens() const { return rows * columns; }
};

// q: `heads` heads a token, k and v: `kv_heads` heads, each of tokens `stride` apart. Keeps P before dropout in
// `probabilities` [rows, heads, columns, past.tokens + columns] if `keep` (that of a sequence is the [heads, length,
// past.tokens + length] at first * heads * (past.tokens + columns)); else one a thread is used and `probabilities` may
// be null.
// out: [tokens, heads * head_size]. Without dropout a sequence's bits are the same alone and beside others.
void AttentionForward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                      const float* v, const Dropout& dropout, bool keep, float* probabilities, float* out);

// dq, dk and dv, laid out as q, k and v, become the gradients. Those of the past's keys and values, laid out as these,
// are added to dpast_keys and dpast_values, one sequence after another; without a past they may be null.
void AttentionBackward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                       const float* v, const Dropout& dropout, const float* probabilities, const float* dout, float* dq,
                       float* dk, float* dv, float* dpast_keys = nullptr, float* dpast_values = nullptr);

// Tokens that a sequence goes on with: its positions [past, past + count), which are tokens [first, first + count) of
// those that are computed together.
struct Continuation {
  int64_t first = 0;
  int64_t count = 0;
  int64_t past = 0;
  const float* keys = nullptr;    // [past + count, kv_heads, head_size]
  const float* values = nullptr;  // the same
};

// Queries of each continuation look at the past and at its keys and values. q: `stride` apart; out: [tokens, heads *
// head_size]. The same bits as AttentionForward's without dropout. Of `shape`, rows, columns and sequences have no part
// in this; it is causal.
void AttentionExtend(const kernels::Compute& compute, const AttentionShape& shape, const float* q,
                     absl::Span<const Continuation> continuations, float* out);

}  // namespace millrace::model
