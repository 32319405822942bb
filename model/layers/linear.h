// Computes linear layers: y = x W + b, with W stored [outputs, inputs], or [inputs, outputs] as GPT-2's Conv1D.
#pragma once

#include <cstdint>

#include "kernels/compute.h"
#include "kernels/product.h"

namespace millrace::model {

// Indices into a model's tensors; -1: there is none.
struct LinearTensors {
  int weight = -1;
  int bias = -1;
};

struct Linear {
  int64_t inputs = 0;
  int64_t outputs = 0;
  bool inputs_first = false;  // W is stored [inputs, outputs]
  kernels::Precision precision = kernels::Precision::kF32;
};

// y[rows, outputs] = x[rows, inputs] W + b; rows of y are `y_stride` apart. `bias` may be null.
void LinearForward(const kernels::Compute& compute, const Linear& linear, const float* x, int64_t rows,
                   const float* weight, const float* bias, float* y, int64_t y_stride);

// dweight += …, dbias += … (null: none, or not wanted). dx[rows, inputs] (null: not wanted) = dy Wᵀ, or += if
// `accumulate`, in which case its chains go on from what it holds. Rows of dy are `dy_stride` apart.
void LinearBackward(const kernels::Compute& compute, const Linear& linear, const float* x, int64_t rows,
                    const float* weight, const float* dy, int64_t dy_stride, float* dx, bool accumulate, float* dweight,
                    float* dbias);

}  // namespace millrace::model
