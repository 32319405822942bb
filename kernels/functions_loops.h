// The loops behind functions.h's arrays, for the files of the instruction sets to instantiate: they compile to what
// their flags allow, to the same bits, so nothing here may be linked across them (all is in an unnamed namespace, and
// what is shared is always inlined).
#pragma once

#include <cstdint>

#include "kernels/functions.h"

namespace millrace::kernels {

struct FunctionLoops {
  void (*exp)(const float* x, float* y, int64_t n);
  void (*tanh)(const float* x, float* y, int64_t n);
  void (*sigmoid)(const float* x, float* y, int64_t n);
  void (*erf)(const float* x, float* y, int64_t n);
  void (*gelu)(const float* x, float* y, int64_t n);
  void (*gelu_backward)(const float* x, const float* dy, float* dx, int64_t n);
  void (*erf_gelu)(const float* x, float* y, int64_t n);
  void (*erf_gelu_backward)(const float* x, const float* dy, float* dx, int64_t n);
  void (*swi_glu)(const float* gate, const float* up, float* y, int64_t n);
  void (*swi_glu_backward)(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n);
};

extern const FunctionLoops kAvx2Functions;
extern const FunctionLoops kAvx512Functions;

namespace {  // NOLINT(google-build-namespaces)

constexpr float kGeluSlope = 0.797884561f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;
constexpr float kHalfRoot = 0.707106781f;       // 1 / sqrt(2)
constexpr float kNormalDensity = 0.398942280f;  // 1 / sqrt(2 pi), of the normal distribution at 0

MILLRACE_INLINE float GeluArgument(float x) { return kGeluSlope * __builtin_fmaf(kGeluCubic * x * x, x, x); }

void ExpLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = ExpOf(x[i]);
}

void TanhLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = TanhOf(x[i]);
}

void SigmoidLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = SigmoidOf(x[i]);
}

void ErfLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = ErfOf(x[i]);
}

void GeluLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float half = 0.5f * x[i];
    y[i] = __builtin_fmaf(half, TanhOf(GeluArgument(x[i])), half);
  }
}

void GeluBackwardLoop(const float* x, const float* dy, float* dx, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float t = TanhOf(GeluArgument(x[i]));
    const float slope = kGeluSlope * __builtin_fmaf(3.0f * kGeluCubic * x[i], x[i], 1.0f);
    // d/dx [x/2 (1 + t)] = (1 + t)/2 + x/2 (1 - t^2) slope
    const float derivative = __builtin_fmaf(0.5f * x[i] * (1.0f - t * t), slope, 0.5f * (1.0f + t));
    dx[i] = dy[i] * derivative;
  }
}

void ErfGeluLoop(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float half = 0.5f * x[i];
    y[i] = __builtin_fmaf(half, ErfOf(kHalfRoot * x[i]), half);
  }
}

void ErfGeluBackwardLoop(const float* x, const float* dy, float* dx, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    // d/dx [x F(x)] = F(x) + x f(x), with distribution F and density f of the normal distribution.
    const float distribution = __builtin_fmaf(0.5f, ErfOf(kHalfRoot * x[i]), 0.5f);
    const float density = kNormalDensity * ExpOf(-0.5f * x[i] * x[i]);
    dx[i] = dy[i] * __builtin_fmaf(x[i], density, distribution);
  }
}

void SwiGluLoop(const float* gate, const float* up, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * SigmoidOf(gate[i]) * up[i];
}

void SwiGluBackwardLoop(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float s = SigmoidOf(gate[i]);
    const float silu = gate[i] * s;
    // d/dg [g s(g)] = s (1 + g (1 - s))
    const float slope = s * __builtin_fmaf(gate[i], 1.0f - s, 1.0f);
    const float of_gate = dy[i] * up[i] * slope;
    const float of_up = dy[i] * silu;
    dgate[i] = of_gate;
    dup[i] = of_up;
  }
}

constexpr FunctionLoops kLoops = {&ExpLoop,    &TanhLoop,          &SigmoidLoop, &ErfLoop,
                                  &GeluLoop,   &GeluBackwardLoop,  &ErfGeluLoop, &ErfGeluBackwardLoop,
                                  &SwiGluLoop, &SwiGluBackwardLoop};

}  // namespace
}  // namespace millrace::kernels
