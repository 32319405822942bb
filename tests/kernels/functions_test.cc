#include "kernels/functions.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "testing/isas.h"

namespace millrace::kernels {
namespace {

double UlpsOff(float value, double truth) {
  const float nearest = static_cast<float>(truth);
  const double ulp = std::nextafter(std::fabs(nearest), INFINITY) - std::fabs(nearest);
  return std::fabs(value - truth) / ulp;
}

// The largest error over [low, high], in units in the last place.
double WorstUlps(const std::function<float(float)>& function, const std::function<double(double)>& truth, float low,
                 float high) {
  double worst = 0;
  for (int i = 0; i <= 400'000; ++i) {
    const float x = low + (high - low) * (static_cast<float>(i) / 400'000);
    worst = std::max(worst, UlpsOff(function(x), truth(x)));
  }
  return worst;
}

TEST(Functions, AreAccurate) {
  EXPECT_LE(WorstUlps(
                ExpOf, [](double x) { return std::exp(x); }, -87.3f, 88.0f),
            2);
  EXPECT_LE(WorstUlps(
                LogOf, [](double x) { return std::log(x); }, 1.001f, 1e5f),
            2);
  EXPECT_LE(WorstUlps(
                LogOf, [](double x) { return std::log(x); }, 1e-30f, 0.999f),
            2);
  EXPECT_LE(WorstUlps(
                TanhOf, [](double x) { return std::tanh(x); }, -10, 10),
            4);
  EXPECT_LE(WorstUlps(
                TanhOf, [](double x) { return std::tanh(x); }, 1e-6f, 0.7f),
            4);
  EXPECT_LE(WorstUlps(
                SigmoidOf, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80),
            4);
  const auto erf = [](double x) { return static_cast<double>(std::erf(static_cast<long double>(x))); };
  EXPECT_LE(WorstUlps(ErfOf, erf, -6, 6), 2);
  EXPECT_LE(WorstUlps(ErfOf, erf, 0.98f, 1.02f), 2);
  EXPECT_LE(WorstUlps(ErfOf, erf, 1e-30f, 1e-3f), 2);
}

TEST(Functions, Ends) {
  EXPECT_EQ(ExpOf(-200), 0);
  EXPECT_EQ(ExpOf(-INFINITY), 0);
  EXPECT_EQ(ExpOf(0), 1);
  EXPECT_TRUE(std::isfinite(ExpOf(1000)));
  EXPECT_TRUE(std::isnan(ExpOf(NAN)));
  EXPECT_EQ(LogOf(1), 0);
  EXPECT_EQ(TanhOf(100), 1);
  EXPECT_EQ(TanhOf(-100), -1);
  EXPECT_EQ(SigmoidOf(0), 0.5f);
  EXPECT_EQ(ErfOf(0), 0);
  EXPECT_EQ(ErfOf(5), 1);
  EXPECT_EQ(ErfOf(-INFINITY), -1);
  EXPECT_TRUE(std::isnan(ErfOf(NAN)));
}

TEST(Functions, F64) {
  for (double x = -30; x < 30; x += 0.37) {
    EXPECT_NEAR(ExpInF64(x) / std::exp(x), 1, 1e-15);
    EXPECT_NEAR(CosInF64(x), std::cos(x), 1e-15);
    EXPECT_NEAR(SinInF64(x), std::sin(x), 1e-15);
  }
  for (const double x : {1000.5, 131072.25, 1e6}) {
    EXPECT_NEAR(CosInF64(x), std::cos(x), 1e-10);
    EXPECT_NEAR(SinInF64(x), std::sin(x), 1e-10);
  }
  for (double x = 1e-5; x < 1e6; x *= 1.7)
    EXPECT_NEAR(LogInF64(x), std::log(x), 1e-14 * std::max(1.0, std::fabs(std::log(x))));
  EXPECT_NEAR(PowInF64(0.95, 1000), std::pow(0.95, 1000), 1e-35);
  EXPECT_EQ(PowInF64(0.9, 0), 1);
}

TEST(Functions, InF64AreExactNearZeroAndFarOut) {
  const auto near = [](double got, double expected, double x) {
    EXPECT_NEAR(got, expected, 4e-15 * std::fabs(expected)) << x;
  };
  for (double magnitude = 1e-300; magnitude < 700; magnitude = magnitude < 1e-20 ? magnitude * 1e7 : magnitude * 1.3) {
    for (const double x : {magnitude, -magnitude}) {
      near(Expm1InF64(x), std::expm1(x), x);
      if (x > -1) near(Log1pInF64(x), std::log1p(x), x);
      near(SigmoidInF64(x), static_cast<double>(1 / (1 + std::exp(static_cast<long double>(-x)))), x);
      near(LogSigmoidInF64(x), static_cast<double>(-std::log1p(std::exp(static_cast<long double>(-x)))), x);
    }
    const long double x = -magnitude;
    near(Log1mExpInF64(-magnitude),
         static_cast<double>(x > -0.7L ? std::log(-std::expm1(x)) : std::log1p(-std::exp(x))), -magnitude);
  }
  EXPECT_EQ(SigmoidInF64(1e300), 1);
  EXPECT_EQ(SigmoidInF64(-1e300), 0);
  EXPECT_EQ(LogSigmoidInF64(1e300), 0);
  EXPECT_EQ(LogSigmoidInF64(-1e300), -1e300);
  EXPECT_TRUE(std::isnan(SigmoidInF64(NAN)) && std::isnan(LogSigmoidInF64(NAN)));
}

TEST(Functions, ArraysAreTheInlineFunctions) {
  std::vector<float> x, y(1003);
  for (int i = 0; i < 1003; ++i) x.push_back(static_cast<float>(i - 500) * 0.173f);
  for (const Isa isa : testing::IsasHere()) {
    Exp(isa, x.data(), y.data(), 1003);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], ExpOf(x[i]));
    Tanh(isa, x.data(), y.data(), 1003);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], TanhOf(x[i]));
    Sigmoid(isa, x.data(), y.data(), 1003);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], SigmoidOf(x[i]));
    Erf(isa, x.data(), y.data(), 1003);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], ErfOf(x[i]));
  }
}

// The loops are vectorised: whatever the instruction set and an element's place among others, and where the result
// takes an operand's place, it gets the bits that it has alone.
TEST(Functions, AnElementAmongOthersIsAsTheElementAlone) {
  std::vector<float> x, dy, y(1003), dx(1003), up(1003);
  for (int i = 0; i < 1003; ++i) {
    x.push_back(static_cast<float>(i - 500) * 0.0173f);
    dy.push_back(static_cast<float>(i % 7) - 3);
    up[static_cast<size_t>(i)] = static_cast<float>(i % 11) - 5;
  }
  for (const Isa isa : testing::IsasHere()) {
    for (const auto function : {&Gelu, &ErfGelu}) {
      function(isa, x.data(), y.data(), 1003);
      for (size_t i = 0; i < x.size(); ++i) {
        float alone;
        function(Isa::kAvx2, &x[i], &alone, 1);
        ASSERT_EQ(y[i], alone);
      }
    }
    for (const auto backward : {&GeluBackward, &ErfGeluBackward}) {
      backward(isa, x.data(), dy.data(), dx.data(), 1003);
      std::vector<float> in_place = dy;
      backward(isa, x.data(), in_place.data(), in_place.data(), 1003);
      EXPECT_EQ(in_place, dx);
      for (size_t i = 0; i < x.size(); ++i) {
        float alone;
        backward(Isa::kAvx2, &x[i], &dy[i], &alone, 1);
        ASSERT_EQ(dx[i], alone);
      }
    }
    SwiGlu(isa, x.data(), up.data(), y.data(), 1003);
    std::vector<float> of_up = dy;
    SwiGluBackward(isa, x.data(), up.data(), of_up.data(), dx.data(), of_up.data(), 1003);
    for (size_t i = 0; i < x.size(); ++i) {
      float alone, of_gate;
      SwiGlu(Isa::kAvx2, &x[i], &up[i], &alone, 1);
      ASSERT_EQ(y[i], alone);
      SwiGluBackward(Isa::kAvx2, &x[i], &up[i], &dy[i], &of_gate, &alone, 1);
      ASSERT_EQ(of_up[i], alone);
      ASSERT_EQ(dx[i], of_gate);
    }
  }
}

double GeluTruth(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double ErfGeluTruth(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double SiluTruth(double x) { return x / (1 + std::exp(-x)); }
double Slope(const std::function<double(double)>& f, double x) { return (f(x + 1e-5) - f(x - 1e-5)) / 2e-5; }

TEST(Functions, GeluAndSwiGluWithTheirDerivatives) {
  for (float x = -8; x < 8; x += 0.0371f) {
    float y, dx, du;
    const float dy = 1.5f, up = 0.7f;
    Gelu(Isa::kAvx2, &x, &y, 1);
    EXPECT_NEAR(y, GeluTruth(x), 2e-6);
    GeluBackward(Isa::kAvx2, &x, &dy, &dx, 1);
    EXPECT_NEAR(dx, dy * Slope(GeluTruth, x), 1e-5);
    ErfGelu(Isa::kAvx2, &x, &y, 1);
    EXPECT_NEAR(y, ErfGeluTruth(x), 1e-6);
    ErfGeluBackward(Isa::kAvx2, &x, &dy, &dx, 1);
    EXPECT_NEAR(dx, dy * Slope(ErfGeluTruth, x), 2e-6);
    SwiGlu(Isa::kAvx2, &x, &up, &y, 1);
    EXPECT_NEAR(y, SiluTruth(x) * up, 2e-6);
    SwiGluBackward(Isa::kAvx2, &x, &up, &dy, &dx, &du, 1);
    EXPECT_NEAR(dx, dy * up * Slope(SiluTruth, x), 1e-5);
    EXPECT_NEAR(du, dy * SiluTruth(x), 1e-5);
  }
}

}  // namespace
}  // namespace millrace::kernels
