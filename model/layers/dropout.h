// Sets a share of numbers to zero and scales the rest (Srivastava et al. 2014). What is dropped is a function of key
// and place alone, so that the backward pass draws it again instead of keeping it.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "kernels/compute.h"

namespace millrace::model {

// One use of dropout in a pass: `site` tells apart the places in the model.
struct Dropout {
  Philox key{0};
  uint64_t site = 0;
  float rate = 0;  // 0 <= rate < 1
};

// y[i] = x[i] / (1 - rate), or 0 with probability rate, for elements [first, first + n) of the site. `y` may be `x`.
// The gradient of the input is the same function of the gradient of the output. Requires first % 4 == 0.
void ApplyDropout(const Dropout& dropout, uint64_t first, int64_t n, const float* x, float* y);

// The same over the threads.
void ApplyDropout(const kernels::Compute& compute, const Dropout& dropout, int64_t n, float* x);

}  // namespace millrace::model
