#include "kernels/compute.h"

#include <sched.h>

#include <atomic>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/checksum.h"
#include "gtest/gtest.h"
#include "kernels/conformance.h"

namespace millrace::kernels {
namespace {

TEST(Compute, ParallelForCoversEveryNumberOnce) {
  for (const int threads : {1, 2, 5}) {
    const Compute compute(DetectIsa(), threads);
    for (const int64_t n : {0, 1, 7, 100, 10'000}) {
      std::vector<std::atomic<int>> times(static_cast<size_t>(n));
      compute.ParallelFor(n, 3, [&times](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++times[static_cast<size_t>(i)];
      });
      for (const auto& count : times) ASSERT_EQ(count, 1);
    }
  }
}

TEST(Compute, DenormalsAreFlushedOnEveryThread) {
  const Compute compute(DetectIsa(), 4);
  std::atomic<int> kept = 0;
  compute.ParallelFor(1000, 1, [&kept](int64_t, int64_t) {
    volatile float tiny = 0x1p-126f;
    tiny = tiny * 0.5f;
    if (tiny != 0.0f) ++kept;
  });
  EXPECT_EQ(kept, 0);
  volatile float tiny = 0x1p-126f;
  tiny = tiny * 0.5f;
  EXPECT_NE(tiny, 0.0f) << "the caller's mode comes back";
}

// Behind the caller, who is busy, a helper would not come for milliseconds.
TEST(Compute, AHelperThatSleptComesOnAnotherCoreThanTheCallers) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  if (CPU_COUNT(&all) == 1) GTEST_SKIP() << "there is one core";
  const Compute compute(Isa::kScalar, 2);
  // Until it has slept: it looks for work a while before.
  cpu_set_t helpers = all;
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (CPU_COUNT(&helpers) == CPU_COUNT(&all)) {
    ASSERT_LT(absl::Now(), deadline);
    for (const absl::Time idle = absl::Now() + absl::Milliseconds(3); absl::Now() < idle;) continue;
    std::atomic<int> here = 0;
    compute.ParallelFor(2, 1, [&](int64_t, int64_t) {
      if (Compute::ThreadIndex() == 1) sched_getaffinity(0, sizeof(helpers), &helpers);
      for (++here; here < 2;) continue;  // one piece each
    });
  }
  EXPECT_EQ(CPU_COUNT(&helpers), CPU_COUNT(&all) - 1);
}

TEST(Compute, NamesAreReadBack) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) EXPECT_EQ(*ParseIsa(IsaName(isa)), isa);
  EXPECT_FALSE(ParseIsa("sse9").ok());
}

TEST(Conformance, IsTheSameOnEveryInstructionSetAndThreadCount) {
  std::string first;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa > DetectIsa()) continue;
    for (const int threads : {1, 3}) {
      Sha256 sum;
      AddConformance(Compute(isa, threads), &sum);
      const std::string digest = sum.HexDigest();
      if (first.empty()) first = digest;
      EXPECT_EQ(digest, first) << IsaName(isa) << ", " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace millrace::kernels
