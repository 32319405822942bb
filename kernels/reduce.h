// Adds up and compares numbers in a defined order.
//
// There are 16 lanes, whatever the processor's registers: lane i takes elements i, i + 16, i + 32, … in this order.
// Lanes are folded in a tree: lane i with lane i + 8, then i + 4, i + 2, i + 1. Missing elements count as nothing.
#pragma once

#include <cstdint>

namespace millrace::kernels {

float Sum(const float* x, int64_t n);
// Lanes by fused multiply-adds.
float Dot(const float* x, const float* y, int64_t n);
float SumSquares(const float* x, int64_t n);
// Of squares of x[i] - center.
float SumSquaresAround(const float* x, float center, int64_t n);
// The largest; -infinity for n == 0. Requires no NaN.
float Max(const float* x, int64_t n);
// Of the magnitudes; 0 for n == 0. Requires no NaN.
float MaxMagnitude(const float* x, int64_t n);

// The same lanes in f64.
double SumInF64(const float* x, int64_t n);
double SumSquaresInF64(const float* x, int64_t n);

}  // namespace millrace::kernels
