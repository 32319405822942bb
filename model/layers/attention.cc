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

// Which elements of dropout's site belong to a head of a sequence. A head's [columns, columns] of a row are padded to a
// multiple of 4, and sequences begin at multiples of 4 there.
uint64_t FirstElement(const AttentionShape& shape, const Sequence& sequence, int64_t head) {
  const auto padded = [](int64_t elements) { return (elements + 3) / 4 * 4; };
  const int64_t row = sequence.first / shape.columns, start = sequence.first % shape.columns;
  return static_cast<uint64_t>((row * shape.heads + head) * padded(shape.columns * shape.columns) +
                               padded(start * shape.columns));
}

}  // namespace

void AttentionForward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                      const float* v, const Dropout& dropout, bool keep, float* probabilities, float* out) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, width = shape.heads * size;
  const Head head = {shape.precision};
  compute.ParallelFor(Sequences(shape) * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sequence sequence = SequenceAt(shape, i / shape.heads);
      const int64_t h = i % shape.heads, columns = sequence.length;
      const float* const queries = q + sequence.first * shape.stride + h * size;
      const float* const keys = k + sequence.first * shape.stride + h / group * size;
      const float* const values = v + sequence.first * shape.stride + h / group * size;
      float* const p = keep ? probabilities + sequence.first * shape.heads * shape.columns + h * columns * columns
                            : probabilities_scratch.Get(columns * columns);
      float* const o = out + sequence.first * width + h * size;
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r), n = r + m;
        head.Run(one_thread, m, n, size, {queries + r * shape.stride, shape.stride, 1},
                 Operand{keys, shape.stride, 1}.Transposed(), p + r * columns, columns);
        kernels::SoftmaxRows(p + r * columns, m, columns, ScoreScale(size), /*causal=*/true, r + 1);
      }
      const float* used = p;
      if (dropout.rate > 0.0f) {
        float* const dropped = dropped_scratch.Get(columns * columns);
        ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * columns, p, dropped);
        used = dropped;
      }
      for (int64_t r = 0; r < columns; r += kRowBlock) {
        const int64_t m = std::min(kRowBlock, columns - r);
        head.Run(one_thread, m, size, r + m, {used + r * columns, columns, 1}, {values, shape.stride, 1}, o + r * width,
                 width);
      }
    }
  });
}

// dV = dropout(P)ᵀ dO;  dP = dropout(dO Vᵀ);  dS = softmax's;  dQ = dS K;  dK = dSᵀ Q. Heads that share keys and values
// add to their gradients one after another.
void AttentionBackward(const kernels::Compute& compute, const AttentionShape& shape, const float* q, const float* k,
                       const float* v, const Dropout& dropout, const float* probabilities, const float* dout, float* dq,
                       float* dk, float* dv) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads;
  const int64_t width = shape.heads * size, stride = shape.stride;
  const Head head = {shape.precision};
  compute.ParallelFor(Sequences(shape) * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sequence sequence = SequenceAt(shape, i / shape.kv_heads);
      const int64_t kv = i % shape.kv_heads, columns = sequence.length, base = sequence.first * stride;
      const float* const keys = k + base + kv * size;
      const float* const values = v + base + kv * size;
      float* const key_gradients = dk + base + kv * size;
      float* const value_gradients = dv + base + kv * size;
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const bool accumulate = h > kv * group;
        const float* const queries = q + base + h * size;
        const float* const p = probabilities + sequence.first * shape.heads * shape.columns + h * columns * columns;
        const float* const output_gradients = dout + sequence.first * width + h * size;
        const float* used = p;
        if (dropout.rate > 0.0f) {
          float* const dropped = dropped_scratch.Get(columns * columns);
          ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * columns, p, dropped);
          used = dropped;
        }
        float* const ds = gradient_scratch.Get(columns * columns);
        for (int64_t r = 0; r < columns; r += kRowBlock) {
          const int64_t m = std::min(kRowBlock, columns - r), n = r + m;
          float* const block = ds + r * columns;
          head.Run(one_thread, m, n, size, {output_gradients + r * width, width, 1},
                   Operand{values, stride, 1}.Transposed(), block, columns);
          for (int64_t j = 0; j < m; ++j) std::fill(block + j * columns + n, block + (j + 1) * columns, 0.0f);
        }
        if (dropout.rate > 0.0f) {
          ApplyDropout(dropout, FirstElement(shape, sequence, h), columns * columns, ds, ds);
        }
        kernels::SoftmaxRowsBackward(p, ds, columns, columns, ScoreScale(size));
        for (int64_t r = 0; r < columns; r += kRowBlock) {
          const int64_t m = std::min(kRowBlock, columns - r);
          // Rows of queries up to r + m look at keys up to there.
          head.Run(one_thread, m, size, r + m, {ds + r * columns, columns, 1}, {keys, stride, 1},
                   dq + base + h * size + r * stride, stride);
          // Keys and values of this block are looked at from row r on.
          head.Run(one_thread, m, size, columns - r, Operand{ds + r * columns + r, columns, 1}.Transposed(),
                   {queries + r * stride, stride, 1}, key_gradients + r * stride, stride, accumulate);
          head.Run(one_thread, m, size, columns - r, Operand{used + r * columns + r, columns, 1}.Transposed(),
                   {output_gradients + r * width, width, 1}, value_gradients + r * stride, stride, accumulate);
        }
      }
    }
  });
}

void AttentionExtend(const kernels::Compute& compute, const AttentionShape& shape, const float* q,
                     absl::Span<const Continuation> continuations, float* out) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, kv_stride = shape.kv_heads * size;
  const int64_t width = shape.heads * size;
  const Head head = {shape.precision};
  compute.ParallelFor(static_cast<int64_t>(continuations.size()) * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Continuation& about = continuations[static_cast<size_t>(i / shape.heads)];
      const int64_t h = i % shape.heads, offset = h / group * size, total = about.past + about.count;
      float* const p = probabilities_scratch.Get(about.count * total);
      head.Run(one_thread, about.count, total, size, {q + about.first * shape.stride + h * size, shape.stride, 1},
               Operand{about.keys + offset, kv_stride, 1}.Transposed(), p, total);
      kernels::SoftmaxRows(p, about.count, total, ScoreScale(size), /*causal=*/true, about.past + 1);
      head.Run(one_thread, about.count, size, total, {p, total, 1}, {about.values + offset, kv_stride, 1},
               out + about.first * width + h * size, width);
    }
  });
}

}  // namespace millrace::model
