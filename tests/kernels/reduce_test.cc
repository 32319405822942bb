#include "kernels/reduce.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/philox.h"
#include "gtest/gtest.h"

namespace millrace::kernels {
namespace {

// The definition: 16 lanes, folded in a tree.
template <typename Number, typename Step>
Number AsDefined(int64_t n, const Step& step) {
  Number lane[16] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % 16] = step(i, lane[i % 16]);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

TEST(Reduce, GivesTheDefinedBits) {
  for (int64_t n = 0; n < 200; ++n) {
    std::vector<float> x(static_cast<size_t>(n)), y(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) {
      const auto words = Philox(7)(static_cast<uint64_t>(n), i);
      x[i] = std::ldexp(2 * UniformFloat(words[0]) - 1, static_cast<int>(words[1] % 20) - 10);
      y[i] = 2 * UniformFloat(words[2]) - 1;
    }
    const auto X = [&x](int64_t i) { return x[static_cast<size_t>(i)]; };
    const auto Y = [&y](int64_t i) { return y[static_cast<size_t>(i)]; };
    EXPECT_EQ(Sum(x.data(), n), AsDefined<float>(n, [&](int64_t i, float lane) { return lane + X(i); }));
    EXPECT_EQ(Dot(x.data(), y.data(), n),
              AsDefined<float>(n, [&](int64_t i, float lane) { return std::fma(X(i), Y(i), lane); }));
    EXPECT_EQ(SumSquares(x.data(), n),
              AsDefined<float>(n, [&](int64_t i, float lane) { return std::fma(X(i), X(i), lane); }));
    EXPECT_EQ(SumSquaresAround(x.data(), 0.3f, n), AsDefined<float>(n, [&](int64_t i, float lane) {
                const float distance = X(i) - 0.3f;
                return std::fma(distance, distance, lane);
              }));
    EXPECT_EQ(SumInF64(x.data(), n), AsDefined<double>(n, [&](int64_t i, double lane) { return lane + X(i); }));
    EXPECT_EQ(SumSquaresInF64(x.data(), n), AsDefined<double>(n, [&](int64_t i, double lane) {
                return std::fma(double{X(i)}, double{X(i)}, lane);
              }));
    float largest = -INFINITY, magnitude = 0;
    for (const float value : x) {
      largest = std::max(largest, value);
      magnitude = std::max(magnitude, std::fabs(value));
    }
    EXPECT_EQ(Max(x.data(), n), largest);
    EXPECT_EQ(MaxMagnitude(x.data(), n), magnitude);
  }
}

}  // namespace
}  // namespace millrace::kernels
