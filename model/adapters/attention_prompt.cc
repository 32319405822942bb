#include "model/adapters/attention_prompt.h"

#include <cmath>

#include "kernels/product.h"
#include "kernels/reduce.h"
#include "kernels/rows.h"
#include "kernels/scratch.h"

namespace millrace::model {
namespace {

using kernels::Operand;

constexpr int64_t kGrain = 1 << 13;

thread_local kernels::Scratch probabilities_scratch;

void Multiply(const kernels::Compute& compute, const AttentionShape& shape, int64_t m, int64_t n, int64_t k,
              const Operand& a, const Operand& b, float* c, int64_t c_stride, bool accumulate = false) {
  kernels::Product product = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .c_stride = c_stride};
  product.accumulate = accumulate;
  product.precision = shape.precision;
  kernels::Multiply(compute, product);
}

float ScoreScale(int64_t head_size) { return 1.0f / std::sqrt(static_cast<float>(head_size)); }

}  // namespace

void AttentionPromptForward(const kernels::Compute& compute, const AttentionShape& shape, const AttentionPrompt& prompt,
                            float* probabilities, float* attended, float* out) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, width = shape.heads * size;
  const int64_t tokens = prompt.tokens, length = prompt.prompt_tokens;
  compute.ParallelFor(shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      float* const p = probabilities + head * tokens * length;
      Multiply(one_thread, shape, tokens, length, size, {prompt.queries + head * size, shape.stride, 1},
               Operand{prompt.keys + head / group * size, shape.stride, 1}.Transposed(), p, length);
      kernels::SoftmaxRows(p, tokens, length, ScoreScale(size), /*causal=*/false, length);
      Multiply(one_thread, shape, tokens, size, length, {p, length, 1},
               {prompt.values + head / group * size, shape.stride, 1}, attended + head * size, width);
    }
  });
  compute.ParallelFor(tokens * width, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = __builtin_fmaf(prompt.gate, attended[i], out[i]);
  });
}

// dA = g dout;  dV = Pᵀ dA;  dP = dA Vᵀ;  dS = softmax's;  dQ += dS K;  dK = dSᵀ Q;  dg = sum of dout ⊙ A. Heads that
// share keys and values add to their gradients one after another.
void AttentionPromptBackward(const kernels::Compute& compute, const AttentionShape& shape,
                             const AttentionPrompt& prompt, const float* probabilities, float* attended,
                             const float* dout, float* dq, float* dk, float* dv, float* dgate) {
  const kernels::Compute one_thread(compute.isa(), 1);
  const int64_t size = shape.head_size, group = shape.heads / shape.kv_heads, width = shape.heads * size;
  const int64_t tokens = prompt.tokens, length = prompt.prompt_tokens;
  *dgate += kernels::Dot(dout, attended, tokens * width);
  // From here on A is not needed: its memory takes dA.
  compute.ParallelFor(tokens * width, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attended[i] = prompt.gate * dout[i];
  });
  compute.ParallelFor(shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t kv = begin; kv < end; ++kv) {
      for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
        const bool accumulate = head > kv * group;
        const float* const p = probabilities + head * tokens * length;
        const Operand d_attended = {attended + head * size, width, 1};
        Multiply(one_thread, shape, length, size, tokens, Operand{p, length, 1}.Transposed(), d_attended,
                 dv + kv * size, shape.stride, accumulate);
        float* const ds = probabilities_scratch.Get(tokens * length);
        Multiply(one_thread, shape, tokens, length, size, d_attended,
                 Operand{prompt.values + kv * size, shape.stride, 1}.Transposed(), ds, length);
        kernels::SoftmaxRowsBackward(p, ds, tokens, length, ScoreScale(size));
        Multiply(one_thread, shape, tokens, size, length, {ds, length, 1}, {prompt.keys + kv * size, shape.stride, 1},
                 dq + head * size, shape.stride, /*accumulate=*/true);
        Multiply(one_thread, shape, length, size, tokens, Operand{ds, length, 1}.Transposed(),
                 {prompt.queries + head * size, shape.stride, 1}, dk + kv * size, shape.stride, accumulate);
      }
    }
  });
}

}  // namespace millrace::model
