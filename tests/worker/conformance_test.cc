#include "worker/conformance.h"

#include <cstdio>
#include <string>

#include "gtest/gtest.h"
#include "kernels/compute.h"

namespace millrace::worker {
namespace {

TEST(ConformanceDigestTest, IsTheSameForAllInstructionSetsAndThreads) {
  using kernels::Isa;
  const std::string expected = ConformanceDigest(kernels::Compute(Isa::kScalar, 1));
  EXPECT_EQ(expected.size(), 64u);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (isa > kernels::DetectIsa()) {
      std::printf("SKIPPED: this processor has no %s\n", std::string(kernels::IsaName(isa)).c_str());
      continue;
    }
    for (const int threads : {1, 3}) {
      EXPECT_EQ(ConformanceDigest(kernels::Compute(isa, threads)), expected) << kernels::IsaName(isa) << " " << threads;
    }
  }
}

}  // namespace
}  // namespace millrace::worker
