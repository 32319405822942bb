#include "ps/conformance.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace millrace::ps {
namespace {

TEST(Conformance, IsTheSameEachTimeAndSoonDone) {
  const std::string digest = ConformanceDigest();
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest.find_first_not_of("0123456789abcdef"), std::string::npos);
  const absl::Time begun = absl::Now();
  EXPECT_EQ(ConformanceDigest(), digest);
  EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
}

}  // namespace
}  // namespace millrace::ps
