// Computes what normalises rows: softmax, cross-entropy, LayerNorm, RMSNorm, forward and backward.
//
// Matrices are [rows, columns], row after row. Sums within a row go by 16 lanes (reduce.h); sums over rows are one
// chain in the order of the rows.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::kernels {

// y[r, c] = exp(scale * x[r, c] - max) / sum over the first `valid` columns, 0 behind them. For causal attention row r
// has valid = first_valid + r; for others pass causal = false and all columns count. `y` may be `x`; one thread.
void SoftmaxRows(float* x, int64_t rows, int64_t columns, float scale, bool causal, int64_t first_valid);
// dx = scale * y * (dy - sum(dy * y)), in place of dy; one thread.
void SoftmaxRowsBackward(const float* y, float* dy, int64_t rows, int64_t columns, float scale);

// What is wanted of rows of logits, whose distributions are p[r] = softmax(logits[r] / temperature).
struct CrossEntropy {
  const uint32_t* targets = nullptr;  // [rows]
  float temperature = 1;              // above 0
  float* loss = nullptr;              // [rows]: -log p[r, target[r]], in nats
  float* entropy = nullptr;           // [rows]: -sum over c of p[r, c] log p[r, c], in nats; null: not wanted
  const float* d_loss = nullptr;      // [rows]: derivatives of the whole by `loss`; null: no gradients are wanted
  const float* d_entropy = nullptr;   // [rows]: by `entropy`; null: zeros. Requires d_loss
};
// The logits become their gradients if there is a d_loss, else they are destroyed.
void CrossEntropyRows(const Compute& compute, float* logits, int64_t rows, int64_t columns, const CrossEntropy& about);

// LayerNorm (Ba, Kiros, Hinton 2016): y = (x - mean) * rstd * gain + bias; bias may be null. mean and rstd [rows] are
// kept for the backward pass.
void LayerNormRows(const Compute& compute, const float* x, const float* gain, const float* bias, float epsilon,
                   int64_t rows, int64_t columns, float* y, float* mean, float* rstd);
// dx += …; dgain += …; dbias += …; each may be null: not wanted.
void LayerNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* mean,
                           const float* rstd, const float* dy, int64_t rows, int64_t columns, float* dx, float* dgain,
                           float* dbias);

// RMSNorm (Zhang and Sennrich 2019): y = x * rstd * gain with rstd = 1 / sqrt(mean of squares + epsilon).
void RmsNormRows(const Compute& compute, const float* x, const float* gain, float epsilon, int64_t rows,
                 int64_t columns, float* y, float* rstd);
// dx += …; dgain += …; each may be null: not wanted.
void RmsNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* rstd, const float* dy,
                         int64_t rows, int64_t columns, float* dx, float* dgain);

// y += sum of x over the rows, which are `stride` apart.
void AddRows(const Compute& compute, const float* x, int64_t rows, int64_t columns, int64_t stride, float* y);
// y += x.
void Add(const Compute& compute, const float* x, int64_t n, float* y);
// y = a + b, apart from both.
void Add(const Compute& compute, const float* a, const float* b, int64_t n, float* y);
// y = x, apart from it.
void Copy(const Compute& compute, const float* x, int64_t n, float* y);

}  // namespace millrace::kernels
