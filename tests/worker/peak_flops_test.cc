#include "worker/peak_flops.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::worker {
namespace {

// Of one square product, multiplied many times; the fastest counts.
double MeasuredHere(const kernels::Compute& compute, kernels::Precision precision) {
  constexpr int64_t kSize = 512;
  const std::vector<float> a(kSize * kSize, 1), b(kSize * kSize, 2);
  std::vector<float> c(kSize * kSize);
  kernels::Product product;
  product.m = product.n = product.k = product.c_stride = kSize;
  product.a = {a.data(), kSize, 1};
  product.b = {b.data(), kSize, 1};
  product.c = c.data();
  product.precision = precision;
  double fastest = 0;
  for (int i = 0; i < 50; ++i) {
    const auto begun = std::chrono::steady_clock::now();
    kernels::Multiply(compute, product);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    fastest = std::max(fastest, 2.0 * kSize * kSize * kSize / took.count());
  }
  return fastest;
}

// Rates on a machine that does other things too: a factor of three is no mistake, one of ten would be.
TEST(PeakFlops, IsWhatProductsReach) {
  for (const kernels::Isa isa : {kernels::DetectIsa(), kernels::Isa::kAvx2}) {
    const kernels::Compute compute(isa, 1);
    for (const kernels::Precision precision : {kernels::Precision::kF32, kernels::Precision::kBf16}) {
      const double peak = PeakFlops(compute, precision), here = MeasuredHere(compute, precision);
      EXPECT_GT(peak, here / 3) << kernels::IsaName(isa);
      EXPECT_LT(peak, here * 3) << kernels::IsaName(isa);
    }
  }
}

TEST(PeakFlops, OfTheDefinitionsIsFarLess) {
  const kernels::Compute defined(kernels::Isa::kScalar, 1), fast(kernels::DetectIsa(), 1);
  const double slow = PeakFlops(defined, kernels::Precision::kF32, absl::ZeroDuration());
  EXPECT_GT(slow, 0);
  EXPECT_LT(slow, PeakFlops(fast, kernels::Precision::kF32) / 3);
}

}  // namespace
}  // namespace millrace::worker
