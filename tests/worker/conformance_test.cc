#include "worker/conformance.h"

#include <string>

#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "testing/isas.h"

namespace millrace::worker {
namespace {

TEST(ConformanceDigestTest, IsTheSameForAllInstructionSetsAndThreads) {
  using kernels::Isa;
  const std::string expected = ConformanceDigest(kernels::Compute(Isa::kScalar, 1));
  EXPECT_EQ(expected.size(), 64u);
  for (const Isa isa : testing::IsasHere()) {
    for (const int threads : {1, 3}) {
      EXPECT_EQ(ConformanceDigest(kernels::Compute(isa, threads)), expected) << kernels::IsaName(isa) << " " << threads;
    }
  }
}

}  // namespace
}  // namespace millrace::worker
