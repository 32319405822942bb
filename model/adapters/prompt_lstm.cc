#include "model/adapters/prompt_lstm.h"

#include <algorithm>

#include "kernels/functions.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"

namespace millrace::model {
namespace {

int64_t TokenAt(const PromptLstm& lstm, int64_t step) { return lstm.reverse ? lstm.tokens - 1 - step : step; }

// The token before it on the way; requires step > 0.
int64_t TokenBefore(const PromptLstm& lstm, int64_t step) { return TokenAt(lstm, step - 1); }

}  // namespace

void PromptLstmForward(const kernels::Compute& compute, const PromptLstm& lstm,
                       const PromptLstmTensors<const float>& weights, const float* x, const PromptLstmMemory& memory,
                       float* out, int64_t stride) {
  const int64_t hidden = lstm.hidden, width = 4 * hidden;
  LinearForward(compute, {lstm.inputs, width}, x, lstm.tokens, weights.weight_ih, weights.bias_ih, memory.gates, width);
  const kernels::FlushDenormals flush;
  float* const recurrent = memory.scratch;
  for (int64_t step = 0; step < lstm.tokens; ++step) {
    const int64_t token = TokenAt(lstm, step);
    float* const gates = memory.gates + token * width;
    float* const cell = memory.cells + token * hidden;
    float* const squashed = memory.squashed + token * hidden;
    float* const h = out + token * stride;
    if (step > 0) {
      LinearForward(compute, {hidden, width}, out + TokenBefore(lstm, step) * stride, 1, weights.weight_hh,
                    weights.bias_hh, recurrent, width);
      kernels::Add(compute, recurrent, width, gates);
    } else {
      kernels::Add(compute, weights.bias_hh, width, gates);
    }
    kernels::Sigmoid(compute.isa(), gates, gates, 2 * hidden);
    kernels::Tanh(compute.isa(), gates + 2 * hidden, gates + 2 * hidden, hidden);
    kernels::Sigmoid(compute.isa(), gates + 3 * hidden, gates + 3 * hidden, hidden);
    const float* const before = step > 0 ? memory.cells + TokenBefore(lstm, step) * hidden : nullptr;
    for (int64_t j = 0; j < hidden; ++j) {
      const float kept = before == nullptr ? 0.0f : gates[hidden + j] * before[j];
      cell[j] = kept + gates[j] * gates[2 * hidden + j];
    }
    kernels::Tanh(compute.isa(), cell, squashed, hidden);
    for (int64_t j = 0; j < hidden; ++j) h[j] = gates[3 * hidden + j] * squashed[j];
  }
}

void PromptLstmBackward(const kernels::Compute& compute, const PromptLstm& lstm,
                        const PromptLstmTensors<const float>& weights, const float* x, const PromptLstmMemory& memory,
                        const float* out, const float* d_out, int64_t stride, float* dx,
                        const PromptLstmTensors<float>& gradients) {
  const int64_t hidden = lstm.hidden, width = 4 * hidden;
  const kernels::FlushDenormals flush;
  float* const dh = memory.scratch;           // by h_t, of what comes later
  float* const dc = memory.scratch + hidden;  // by c_t, likewise
  std::fill_n(memory.scratch, 2 * hidden, 0.0f);
  for (int64_t step = lstm.tokens; step-- > 0;) {
    const int64_t token = TokenAt(lstm, step);
    float* const gates = memory.gates + token * width;
    const float* const squashed = memory.squashed + token * hidden;
    const float* const before = step > 0 ? memory.cells + TokenBefore(lstm, step) * hidden : nullptr;
    for (int64_t j = 0; j < hidden; ++j) {
      const float i = gates[j], f = gates[hidden + j], g = gates[2 * hidden + j], o = gates[3 * hidden + j];
      const float by_h = d_out[token * stride + j] + dh[j];
      const float by_c = dc[j] + by_h * o * (1.0f - squashed[j] * squashed[j]);
      gates[j] = by_c * g * i * (1.0f - i);
      gates[hidden + j] = before == nullptr ? 0.0f : by_c * before[j] * f * (1.0f - f);
      gates[2 * hidden + j] = by_c * i * (1.0f - g * g);
      gates[3 * hidden + j] = by_h * squashed[j] * o * (1.0f - o);
      dc[j] = by_c * f;
    }
    if (step == 0) break;
    LinearBackward(compute, {hidden, width}, out + TokenBefore(lstm, step) * stride, 1, weights.weight_hh, gates, width,
                   dh, /*accumulate=*/false, gradients.weight_hh, /*dbias=*/nullptr);
  }
  kernels::AddRows(compute, memory.gates, lstm.tokens, width, width, gradients.bias_hh);
  LinearBackward(compute, {lstm.inputs, width}, x, lstm.tokens, weights.weight_ih, memory.gates, width, dx,
                 /*accumulate=*/true, gradients.weight_ih, gradients.bias_ih);
}

}  // namespace millrace::model
