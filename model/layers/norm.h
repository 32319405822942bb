// Normalises rows: LayerNorm (Ba, Kiros, Hinton 2016) or RMSNorm (Zhang and Sennrich 2019).
#pragma once

#include <cstdint>

#include "kernels/compute.h"

namespace millrace::model {

enum class NormKind { kLayer, kRms };

// Indices into a model's tensors; -1: there is none.
struct NormTensors {
  int gain = -1;
  int bias = -1;
};

// y[rows, columns]; mean [rows] (LayerNorm only) and rstd [rows] are kept for the backward pass. `bias` may be null.
void NormForward(const kernels::Compute& compute, NormKind kind, const float* x, const float* gain, const float* bias,
                 float epsilon, int64_t rows, int64_t columns, float* y, float* mean, float* rstd);

// dx += …; dgain += …; dbias += …; null: none, or not wanted.
void NormBackward(const kernels::Compute& compute, NormKind kind, const float* x, const float* gain, const float* mean,
                  const float* rstd, const float* dy, int64_t rows, int64_t columns, float* dx, float* dgain,
                  float* dbias);

}  // namespace millrace::model
