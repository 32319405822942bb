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

// loss[r] = log(sum over c of exp(logits[r, c])) - logits[r, target[r]], in nats.
// If `gradient_scale` is not 0, logits become gradient_scale * (softmax - onehot), else they are left as they are not
// needed any more (destroyed).
void CrossEntropyRows(const Compute& compute, float* logits, const uint32_t* targets, int64_t rows, int64_t columns,
                      float gradient_scale, float* loss);

// LayerNorm (Ba, Kiros, Hinton 2016): y = (x - mean) * rstd * gain + bias; bias may be null. mean and rstd [rows] are
// kept for the backward pass.
void LayerNormRows(const Compute& compute, const float* x, const float* gain, const float* bias, float epsilon,
                   int64_t rows, int64_t columns, float* y, float* mean, float* rstd);
// dx += …; dgain and dbias (may be null) += ….
void LayerNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* mean,
                           const float* rstd, const float* dy, int64_t rows, int64_t columns, float* dx, float* dgain,
                           float* dbias);

// RMSNorm (Zhang and Sennrich 2019): y = x * rstd * gain with rstd = 1 / sqrt(mean of squares + epsilon).
void RmsNormRows(const Compute& compute, const float* x, const float* gain, float epsilon, int64_t rows,
                 int64_t columns, float* y, float* rstd);
void RmsNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* rstd, const float* dy,
                         int64_t rows, int64_t columns, float* dx, float* dgain);

// y += sum of x over the rows.
void AddRows(const Compute& compute, const float* x, int64_t rows, int64_t columns, float* y);
// y += x.
void Add(const Compute& compute, const float* x, int64_t n, float* y);

}  // namespace millrace::kernels
