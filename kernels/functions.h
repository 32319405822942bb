// Computes functions of single numbers: one polynomial each, the same on every processor.
//
// The array versions are vectorised for an instruction set; each element is computed as the inline function next to it
// defines. Errors against the true value, over the whole range: at most 2 units in the last place for Exp, Log and Erf,
// 4 for Tanh and Sigmoid.
#pragma once

#include <cstdint>

#include "kernels/compute.h"

// Files for different instruction sets include what follows: a copy that is not inlined might be linked for them all.
#define MILLRACE_INLINE inline __attribute__((always_inline))

namespace millrace::kernels {

namespace internal {

MILLRACE_INLINE float FloatOf(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
MILLRACE_INLINE uint32_t BitsOf(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace internal

// e^x. 0 below -87.33, where the result would be denormal; above 88.02 that of 88.02, so that nothing overflows.
MILLRACE_INLINE float ExpOf(float x) {
  constexpr float kLowest = -87.33f, kHighest = 88.02f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float within = x < kLowest ? kLowest : x > kHighest ? kHighest : x;
  const float shifted = __builtin_fmaf(within, 1.44269504f, kRound);
  const float n = shifted - kRound;
  float r = __builtin_fmaf(n, -0.693145752f, within);
  r = __builtin_fmaf(n, -1.42860677e-6f, r);
  // Cephes' expf.
  float p = 1.9875691500e-4f;
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  // The lower bits of `shifted` are n.
  const float scale = internal::FloatOf((internal::BitsOf(shifted) + 127) << 23);
  const float result = p * scale;
  return x < kLowest ? 0.0f : result;
}

// The natural logarithm of a positive normal number.
MILLRACE_INLINE float LogOf(float x) {
  const uint32_t bits = internal::BitsOf(x);
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  const uint32_t offset = bits - 0x3F3504F3;
  const float e = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float m = internal::FloatOf((offset & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  // Cephes' logf.
  float p = 7.0376836292e-2f;
  p = __builtin_fmaf(p, m, -1.1514610310e-1f);
  p = __builtin_fmaf(p, m, 1.1676998740e-1f);
  p = __builtin_fmaf(p, m, -1.2420140846e-1f);
  p = __builtin_fmaf(p, m, 1.4249322787e-1f);
  p = __builtin_fmaf(p, m, -1.6668057665e-1f);
  p = __builtin_fmaf(p, m, 2.0000714765e-1f);
  p = __builtin_fmaf(p, m, -2.4999993993e-1f);
  p = __builtin_fmaf(p, m, 3.3333331174e-1f);
  const float square = m * m;
  float y = p * m * square;
  y = __builtin_fmaf(e, -2.12194440e-4f, y);
  y = __builtin_fmaf(-0.5f, square, y);
  return __builtin_fmaf(e, 0.693359375f, m + y);
}

MILLRACE_INLINE float TanhOf(float x) {
  const float magnitude = internal::FloatOf(internal::BitsOf(x) & 0x7FFFFFFF);
  // Cephes' tanhf.
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = __builtin_fmaf(p, square, 2.06390887954e-2f);
  p = __builtin_fmaf(p, square, -5.37397155531e-2f);
  p = __builtin_fmaf(p, square, 1.33314422036e-1f);
  p = __builtin_fmaf(p, square, -3.33332819422e-1f);
  const float near = __builtin_fmaf(p * square, x, x);
  const float far = 1.0f - 2.0f / (ExpOf(2.0f * magnitude) + 1.0f);
  const float signed_far = internal::FloatOf(internal::BitsOf(far) | (internal::BitsOf(x) & 0x80000000));
  return magnitude < 0.625f ? near : signed_far;
}

// 1 / (1 + e^-x).
MILLRACE_INLINE float SigmoidOf(float x) { return 1.0f / (1.0f + ExpOf(-x)); }

// The error function, 2 / sqrt(pi) times the integral of e^-t^2 from 0 to x. Both polynomials were fitted for this
// file, for the least largest error (Lawson 1961): erf(a) / a - 1 in a^2 up to 1, and -ln(1 - erf(a)) in a up to 4,
// behind which erf is 1.
MILLRACE_INLINE float ErfOf(float x) {
  const float magnitude = internal::FloatOf(internal::BitsOf(x) & 0x7FFFFFFF);
  const float square = x * x;
  float p = 7.889123e-5f;
  p = __builtin_fmaf(p, square, -8.020842e-4f);
  p = __builtin_fmaf(p, square, 5.1895357e-3f);
  p = __builtin_fmaf(p, square, -2.6854444e-2f);
  p = __builtin_fmaf(p, square, 1.12836e-1f);
  p = __builtin_fmaf(p, square, -3.7612626e-1f);
  p = __builtin_fmaf(p, square, 1.2837917e-1f);
  const float near = __builtin_fmaf(p, x, x);
  const float a = magnitude > 4.0f ? 4.0f : magnitude;
  float q = -1.8557403e-4f;
  q = __builtin_fmaf(q, a, 2.9396075e-3f);
  q = __builtin_fmaf(q, a, -2.1805318e-2f);
  q = __builtin_fmaf(q, a, 1.0303737e-1f);
  q = __builtin_fmaf(q, a, 6.382257e-1f);
  q = __builtin_fmaf(q, a, 1.12704f);
  q = __builtin_fmaf(q, a, 3.537193e-4f);
  const float far = 1.0f - ExpOf(-q);
  const float signed_far = internal::FloatOf(internal::BitsOf(far) | (internal::BitsOf(x) & 0x80000000));
  return magnitude < 1.0f ? near : signed_far;
}

// Over arrays; `y` may be `x`.
void Exp(Isa isa, const float* x, float* y, int64_t n);
void Tanh(Isa isa, const float* x, float* y, int64_t n);
void Sigmoid(Isa isa, const float* x, float* y, int64_t n);
void Erf(Isa isa, const float* x, float* y, int64_t n);

// GELU in its tanh form (Hendrycks and Gimpel 2016; GPT-2's): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).
void Gelu(Isa isa, const float* x, float* y, int64_t n);
// dx = dy * derivative at x; `dx` may be `dy`.
void GeluBackward(Isa isa, const float* x, const float* dy, float* dx, int64_t n);

// GELU itself (BERT's): x/2 * (1 + erf(x / sqrt(2))).
void ErfGelu(Isa isa, const float* x, float* y, int64_t n);
// dx = dy * derivative at x; `dx` may be `dy`.
void ErfGeluBackward(Isa isa, const float* x, const float* dy, float* dx, int64_t n);

// The gate of SwiGLU (Shazeer 2020): y = gate * sigmoid(gate) * up.
void SwiGlu(Isa isa, const float* gate, const float* up, float* y, int64_t n);
// `dgate` and `dup` may be `gate` and `up`, and `dup` may be `dy`.
void SwiGluBackward(Isa isa, const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n);

// In f64, for tables, schedules and losses; of one number at a time, exact to a few units in the last place.
double ExpInF64(double x);  // requires |x| <= 700
double LogInF64(double x);  // requires a positive normal number
double CosInF64(double x);  // requires |x| <= 2^20
double SinInF64(double x);  // requires |x| <= 2^20
double PowInF64(double base, uint64_t exponent);
double Expm1InF64(double x);       // e^x - 1; requires |x| <= 700
double Log1pInF64(double x);       // ln(1 + x); requires x > -1
double Log1mExpInF64(double x);    // ln(1 - e^x); requires -700 <= x <= -1e-300
double SigmoidInF64(double x);     // 1 / (1 + e^-x), of any number, NaN of NaN; 0 below -700
double LogSigmoidInF64(double x);  // its logarithm

}  // namespace millrace::kernels
