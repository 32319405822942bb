#include "model/layers/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/rows.h"
#include "kernels/scratch.h"

namespace millrace::model {
namespace {

using kernels::Multiply;
using kernels::Operand;
using kernels::Product;
using kernels::Scratch;

constexpr int64_t kRowBlock = 64;  // even: pairs of bf16 stay together

thread_local Scratch probabilities_scratch;
thread_local Scratch dropped_scratch;
thread_local Scratch gradient_scratch;

float ScoreScale(int64_t head_size) { return 1.0f / std::sqrt(static_cast<float>(head_size)); }

// Products of one head.
struct Head {
  kernels::Precision precision;

  // c[rows of block, n] = a[block, k] b[k, n].
  void Run(const kernels::Compute& compute, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b,
           float* c, int64_t c_stride, bool accumulate = false) const {
    Product product = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .c_stride = c_stride};
    product.accumulate = accumulate;
    product.precision = precision;
    Multiply(compute, product);
  }
};

int64_t Sequences(const AttentionShape& shape) {
  return shape.sequences.empty() ? shape.rows : static_cast<int64_t>(shape.sequences.size());
}

Sequence SequenceAt(const AttentionShape& shape, int64_t index) {
  return shape.sequences.empty() ? Sequence{index * shape.columns, shape.columns}
                                 : shape.sequences[static_cast<size_t>(index)];
}

// Which elements of dropout's site belong to a head of a sequence. A head's [columns, past + columns] of a row are
// padded to a multiple of 4, and sequences begin at multiples of 4 there.
uint64_t FirstElement(const AttentionShape& shape, const Sequence& sequence, int64_t head) {
  const auto padded = [](int64_t elements) { return (elements + 3) / 4 * 4; };
  const int64_t row = sequence.first / shape.columns, start = sequence.first % shape.columns;
  const int64_t width = shape.past.tokens + shape.columns;
  return static_cast<uint64_t>((row * shape.heads + head) * padded(shape.columns * width) + padded(start * width));
}

// The first position that some query from `position` on looks at, or the one before it: pairs of bf16 stay together. So
// chains of products that begin there have the bits of those that begin at 0, where probabilities are 0.
int64_t FirstSeen(const AttentionShape& shape, int64_t position) {
  if (shape.window == 0) return 0;
  return std::max<int64_t>(0, position - shape.window + 1) / 2 * 2;
}

// One behind the last position that some query of a block, which ends before `end`, looks at.
int64_t EndSeen(const AttentionShape& shape, int64_t end, int64_t columns) { return shape.causal ? end : columns; }

// Scores of queries at positions [first, first + rows) become probabilities. p: [rows, past.tokens + columns], of which
// those of the past and the positions from FirstSeen(first) to the last query's are scores; all others become 0.
void Probabilities(const AttentionShape& shape, int64_t first, int64_t rows, int64_t columns, float* p) {
  const float scale = ScoreScale(shape.head_size);
  if (shape.window == 0 || first + rows <= shape.window) {
    kernels::SoftmaxRows(p, rows, shape.past.tokens + columns, scale, shape.causal, shape.past.tokens + first + 1);
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t own = first + i, start = std::max<int64_t>(0, own - shape.window + 1);
    float* const row = p + i * columns;
    std::fill(row, row + start, 0.0f);
    kernels::SoftmaxRows(row + start, 1, columns - start, scale, /*causal=*/true, own + 1 - start);
  }
}

// Where the probabilities of a sequence's first head are kept.
int64_t FirstProbability(const AttentionShape& shape, const Sequence& sequence) {
  return sequence.first * shape.heads * (shape.past.tokens + shape.columns);
}

}  // namespace

void AttentionForward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                      const float* v, const Dropout& dropout, bool keep, float* probabilities, float* out) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, width = shape.heads * size;
  const Past& past = shape.past;
  const Head head = {shape.precision};
  compute.ParallelFor(Sequences(shape) * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sequence sequence = SequenceAt(shape, i / shape.heads);
      const int64_t h = i % shape.heads, columns = sequence.length, wide = past.tokens + columns;
      const float* const queries = q + sequence.first * shape.stride + h * size;
      const float* const keys = k + sequence.first * shape.stride + h / group * size;
      const float* const values = v + sequence.first * shape.stride + h / group * size;
      float* const p = keep ? probabilities + FirstProbability(shape, sequence) + h * columns * wide
                            : probabilities_scratch.Get(columns * wide);
      float* const o = out + sequence.first * width + h * size;
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r), seen = FirstSeen(shape, r);
        const Operand block = {queries + r * shape.stride, shape.stride, 1};
        float* const scores = p + r * wide;
        if (past.tokens > 0) {
          head.Run(one_thread, m, past.tokens, size, block,
                   Operand{past.keys + h / group * size, past.stride, 1}.Transposed(), scores, wide);
        }
        head.Run(one_thread, m, EndSeen(shape, r + m, columns) - seen, size, block,
                 Operand{keys + seen * shape.stride, shape.stride, 1}.Transposed(), scores + past.tokens + seen, wide);
        Probabilities(shape, r, m, columns, scores);
      }
      const float* used = p;
      if (dropout.rate > 0.0f) {
        float* const dropped = dropped_scratch.Get(columns * wide);
        ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * wide, p, dropped);
        used = dropped;
      }
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r), seen = FirstSeen(shape, r);
        if (past.tokens > 0) {
          head.Run(one_thread, m, size, past.tokens, {used + r * wide, wide, 1},
                   {past.values + h / group * size, past.stride, 1}, o + r * width, width);
        }
        head.Run(one_thread, m, size, EndSeen(shape, r + m, columns) - seen,
                 {used + r * wide + past.tokens + seen, wide, 1}, {values + seen * shape.stride, shape.stride, 1},
                 o + r * width, width,
                 /*accumulate=*/past.tokens > 0);
      }
    }
  });
}

// dV = dropout(P)ᵀ dO;  dP = dropout(dO Vᵀ);  dS = softmax's;  dQ = dS K;  dK = dSᵀ Q. Heads that share keys and values
// add to their gradients one after another; so do sequences to those of the past.
void AttentionBackward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                       const float* v, const Dropout& dropout, const float* probabilities, const float* dout, float* dq,
                       float* dk, float* dv, float* dpast_keys, float* dpast_values) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads;
  const int64_t width = shape.heads * size, stride = shape.stride;
  const Past& past = shape.past;
  const Head head = {shape.precision};
  const auto backward = [&](const Sequence& sequence, int64_t kv) {
    const int64_t columns = sequence.length, wide = past.tokens + columns, base = sequence.first * stride;
    const float* const keys = k + base + kv * size;
    const float* const values = v + base + kv * size;
    float* const key_gradients = dk + base + kv * size;
    float* const value_gradients = dv + base + kv * size;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      const bool accumulate = h > kv * group;
      const float* const queries = q + base + h * size;
      const float* const p = probabilities + FirstProbability(shape, sequence) + h * columns * wide;
      const float* const output_gradients = dout + sequence.first * width + h * size;
      const float* used = p;
      if (dropout.rate > 0.0f) {
        float* const dropped = dropped_scratch.Get(columns * wide);
        ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * wide, p, dropped);
        used = dropped;
      }
      float* const ds = gradient_scratch.Get(columns * wide);
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r), seen = FirstSeen(shape, r);
        const int64_t n = EndSeen(shape, r + m, columns);
        float* const block = ds + r * wide;
        const Operand d_block = {output_gradients + r * width, width, 1};
        if (past.tokens > 0) {
          head.Run(one_thread, m, past.tokens, size, d_block,
                   Operand{past.values + kv * size, past.stride, 1}.Transposed(), block, wide);
        }
        head.Run(one_thread, m, n - seen, size, d_block, Operand{values + seen * stride, stride, 1}.Transposed(),
                 block + past.tokens + seen, wide);
        for (int64_t j = 0; j < m; ++j) {
          float* const own = block + j * wide + past.tokens;
          std::fill(own, own + seen, 0.0f);
          std::fill(own + n, own + columns, 0.0f);
        }
      }
      if (dropout.rate > 0.0f) {
        ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * wide, ds, ds);
      }
      kernels::SoftmaxRowsBackward(p, ds, columns, wide, ScoreScale(size));
      const float* const own_ds = ds + past.tokens;
      const float* const own_used = used + past.tokens;
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r), seen = FirstSeen(shape, r);
        float* const query_gradients = dq + base + h * size + r * stride;
        if (past.tokens > 0) {
          head.Run(one_thread, m, size, past.tokens, {ds + r * wide, wide, 1}, {past.keys + kv * size, past.stride, 1},
                   query_gradients, stride);
        }
        // Rows of queries up to r + m look at keys up to there, or at all.
        head.Run(one_thread, m, size, EndSeen(shape, r + m, columns) - seen, {own_ds + r * wide + seen, wide, 1},
                 {keys + seen * stride, stride, 1}, query_gradients, stride, /*accumulate=*/past.tokens > 0);
        // Keys and values of this block are looked at from row r on, to the last one whose window reaches them.
        const int64_t from = shape.causal ? r : 0;
        const int64_t looking = shape.window == 0 ? columns - from : std::min(columns - r, m - 1 + shape.window);
        head.Run(one_thread, m, size, looking, Operand{own_ds + from * wide + r, wide, 1}.Transposed(),
                 {queries + from * stride, stride, 1}, key_gradients + r * stride, stride, accumulate);
        head.Run(one_thread, m, size, looking, Operand{own_used + from * wide + r, wide, 1}.Transposed(),
                 {output_gradients + from * width, width, 1}, value_gradients + r * stride, stride, accumulate);
      }
      if (past.tokens == 0) continue;
      head.Run(one_thread, past.tokens, size, columns, Operand{ds, wide, 1}.Transposed(), {queries, stride, 1},
               dpast_keys + kv * size, past.stride, /*accumulate=*/true);
      head.Run(one_thread, past.tokens, size, columns, Operand{used, wide, 1}.Transposed(),
               {output_gradients, width, 1}, dpast_values + kv * size, past.stride, /*accumulate=*/true);
    }
  };
  if (past.tokens == 0) {
    compute.ParallelFor(Sequences(shape) * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) backward(SequenceAt(shape, i / shape.kv_heads), i % shape.kv_heads);
    });
    return;
  }
  compute.ParallelFor(shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t kv = begin; kv < end; ++kv) {
      for (int64_t i = 0; i < Sequences(shape); ++i) backward(SequenceAt(shape, i), kv);
    }
  });
}

void AttentionExtend(const kernels::Compute& compute, const AttentionShape& shape, const float* q,
                     absl::Span<const Continuation> continuations, float* out) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, kv_stride = shape.kv_heads * size;
  const int64_t width = shape.heads * size;
  const Past& past = shape.past;
  const Head head = {shape.precision};
  compute.ParallelFor(static_cast<int64_t>(continuations.size()) * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Continuation& about = continuations[static_cast<size_t>(i / shape.heads)];
      const int64_t h = i % shape.heads, offset = h / group * size, total = about.past + about.count;
      const int64_t wide = past.tokens + total, seen = FirstSeen(shape, about.past);
      const Operand queries = {q + about.first * shape.stride + h * size, shape.stride, 1};
      float* const p = probabilities_scratch.Get(about.count * wide);
      float* const o = out + about.first * width + h * size;
      if (past.tokens > 0) {
        head.Run(one_thread, about.count, past.tokens, size, queries,
                 Operand{past.keys + offset, past.stride, 1}.Transposed(), p, wide);
      }
      head.Run(one_thread, about.count, total - seen, size, queries,
               Operand{about.keys + seen * kv_stride + offset, kv_stride, 1}.Transposed(), p + past.tokens + seen,
               wide);
      Probabilities(shape, about.past, about.count, total, p);
      if (past.tokens > 0) {
        head.Run(one_thread, about.count, size, past.tokens, {p, wide, 1}, {past.values + offset, past.stride, 1}, o,
                 width);
      }
      head.Run(one_thread, about.count, size, total - seen, {p + past.tokens + seen, wide, 1},
               {about.values + seen * kv_stride + offset, kv_stride, 1}, o, width, /*accumulate=*/past.tokens > 0);
    }
  });
}

}  // namespace millrace::model
