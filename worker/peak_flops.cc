#include "worker/peak_flops.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace millrace::worker {
namespace {

// Of each thread. The fastest of the shapes that were tried, from 256 to 2048 a side: larger ones reach 0.84 to 0.95 of
// it.
constexpr int64_t kRows = 384, kColumns = 384, kDepth = 384;
// The definitions take a hundred times as long.
constexpr int64_t kScalarRows = 8;

constexpr int kFewest = 4;

// That the process has used.
double ProcessorSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

double PeakFlops(const kernels::Compute& compute, kernels::Precision precision, absl::Duration patience) {
  const int64_t rows = (compute.isa() == kernels::Isa::kScalar ? kScalarRows : kRows) * compute.threads();
  const std::vector<float> a(static_cast<size_t>(rows * kDepth), 0.5f),
      b(static_cast<size_t>(kDepth * kColumns), 0.25f);
  std::vector<float> c(static_cast<size_t>(rows * kColumns));
  kernels::Product product;
  product.m = rows;
  product.n = kColumns;
  product.k = kDepth;
  product.a = {a.data(), kDepth, 1};
  product.b = {b.data(), kColumns, 1};
  product.c = c.data();
  product.c_stride = kColumns;
  product.precision = precision;
  const double flops = 2.0 * static_cast<double>(rows * kColumns * kDepth);
  double peak = 0;
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(patience);
  for (int done = 0; done < kFewest || std::chrono::steady_clock::now() < deadline; ++done) {
    const double begun = ProcessorSeconds();
    kernels::Multiply(compute, product);
    const double seconds = (ProcessorSeconds() - begun) / compute.threads();
    if (seconds > 0) peak = std::max(peak, flops / seconds);
  }
  return peak;
}

}  // namespace millrace::worker
