#include "kernels/functions.h"

#include <cstring>

#include "kernels/functions_loops.h"

namespace millrace::kernels {
namespace {

const FunctionLoops& LoopsOf(Isa isa) { return isa >= Isa::kAvx512 ? kAvx512Functions : kAvx2Functions; }

}  // namespace

const FunctionLoops kAvx2Functions = kLoops;

void Exp(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).exp(x, y, n);
}

void Tanh(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).tanh(x, y, n);
}

void Sigmoid(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).sigmoid(x, y, n);
}

void Erf(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).erf(x, y, n);
}

void Gelu(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).gelu(x, y, n);
}

void GeluBackward(Isa isa, const float* x, const float* dy, float* dx, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).gelu_backward(x, dy, dx, n);
}

void ErfGelu(Isa isa, const float* x, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).erf_gelu(x, y, n);
}

void ErfGeluBackward(Isa isa, const float* x, const float* dy, float* dx, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).erf_gelu_backward(x, dy, dx, n);
}

void SwiGlu(Isa isa, const float* gate, const float* up, float* y, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).swi_glu(gate, up, y, n);
}

void SwiGluBackward(Isa isa, const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n) {
  const FlushDenormals flush;
  LoopsOf(isa).swi_glu_backward(gate, up, dy, dgate, dup, n);
}

double ExpInF64(double x) {
  // x = n ln 2 + r; e^r by its series, which at |r| <= 0.35 needs 14 terms.
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  double r = __builtin_fma(n, -6.93147180369123816490e-01, x);
  r = __builtin_fma(n, -1.90821492927058770002e-10, r);
  double p = 1.0;
  for (int i = 16; i > 0; --i) p = __builtin_fma(p, r / i, 1.0);
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52;
  double scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

double LogInF64(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // x = m 2^e with m in about [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s), s = (m - 1) / (m + 1).
  const uint64_t offset = bits - 0x3FE6A09E667F3BCDull;
  const auto e = static_cast<double>(static_cast<int64_t>(offset) >> 52);
  const uint64_t mantissa = (offset & 0x000FFFFFFFFFFFFFull) + 0x3FE6A09E667F3BCDull;
  double m;
  std::memcpy(&m, &mantissa, sizeof(m));
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double p = 0.0;
  for (int i = 25; i > 0; i -= 2) p = __builtin_fma(p, square, 1.0 / i);
  return __builtin_fma(e, 6.93147180369123816490e-01, __builtin_fma(2.0 * s, p, e * 1.90821492927058770002e-10));
}

namespace {

// cos(r) and sin(r) for |r| <= pi/4, by their series.
double CosSeries(double r) {
  const double square = r * r;
  double p = 1.0;
  for (int i = 18; i > 0; i -= 2) p = __builtin_fma(p, -square / (i * (i - 1)), 1.0);
  return p;
}
double SinSeries(double r) {
  const double square = r * r;
  double p = 1.0;
  for (int i = 19; i > 1; i -= 2) p = __builtin_fma(p, -square / (i * (i - 1)), 1.0);
  return r * p;
}

// cos(x + quarter * pi/2).
double CosQuarter(double x, int64_t quarter) {
  const double shifted = x * 0.63661977236758134308 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  double r = __builtin_fma(n, -1.57079632679489655800e+00, x);
  r = __builtin_fma(n, -6.12323399573676603587e-17, r);
  switch ((static_cast<int64_t>(n) + quarter) & 3) {
    case 0:
      return CosSeries(r);
    case 1:
      return -SinSeries(r);
    case 2:
      return -CosSeries(r);
    default:
      return SinSeries(r);
  }
}

}  // namespace

double CosInF64(double x) { return CosQuarter(x, 0); }
double SinInF64(double x) { return CosQuarter(x, 3); }

// Kahan's way: where 1 + x and e^x round, the quotient of logarithm and difference makes good for what was lost.
double Expm1InF64(double x) {
  const double power = ExpInF64(x);
  if (power == 1.0) return x;
  const double difference = power - 1.0;
  return difference == -1.0 ? -1.0 : difference * (x / LogInF64(power));
}

double Log1pInF64(double x) {
  const double sum = 1.0 + x;
  return sum == 1.0 ? x : LogInF64(sum) * (x / (sum - 1.0));
}

double Log1mExpInF64(double x) { return x > -0.7 ? LogInF64(-Expm1InF64(x)) : Log1pInF64(-ExpInF64(x)); }

double SigmoidInF64(double x) {
  if (x != x) return x;
  if (x >= 0) return 1.0 / (1.0 + ExpInF64(x > 700.0 ? -700.0 : -x));
  if (x < -700.0) return 0.0;
  const double power = ExpInF64(x);
  return power / (1.0 + power);
}

double LogSigmoidInF64(double x) {
  if (x != x) return x;
  const double magnitude = x < 0 ? -x : x;
  const double rest = magnitude > 700.0 ? 0.0 : Log1pInF64(ExpInF64(-magnitude));
  return x < 0 ? x - rest : -rest;
}

double PowInF64(double base, uint64_t exponent) {
  double power = 1.0;
  for (; exponent > 0; exponent /= 2, base *= base) {
    if (exponent % 2 == 1) power *= base;
  }
  return power;
}

}  // namespace millrace::kernels
