#include "kernels/bfloat16.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "testing/bfloat16_edges.h"

namespace millrace::kernels {
namespace {

TEST(BFloat16, RoundsToNearestEven) {
  const auto round = [](float value) { return WidenBf16(RoundToBf16(value)); };
  EXPECT_EQ(round(1.0f), 1.0f);
  EXPECT_EQ(round(1.0f + 0x1p-8f), 1.0f);               // a tie: to even
  EXPECT_EQ(round(1.0f + 0x3p-8f), 1.0f + 0x1p-6f);     // a tie: to even
  EXPECT_EQ(round(1.0f + 0x1.02p-8f), 1.0f + 0x1p-7f);
  EXPECT_EQ(round(-1.0f - 0x1.02p-8f), -1.0f - 0x1p-7f);
  EXPECT_EQ(round(0x1p-127f), 0.0f);
  EXPECT_TRUE(std::signbit(round(-0x1p-127f)));
  EXPECT_TRUE(std::isinf(round(3.4e38f)));
  EXPECT_TRUE(std::isnan(round(std::nanf(""))));
  EXPECT_TRUE(std::isinf(round(-INFINITY)));
}

TEST(BFloat16, ArraysAreRoundedAsSingleNumbers) {
  const std::vector<float> values = testing::Bfloat16Edges();
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint16_t> rounded(values.size());
  std::vector<float> widened(values.size()), kept = values;
  RoundToBf16(values.data(), n, rounded.data());
  WidenBf16(rounded.data(), n, widened.data());
  KeepBf16(kept.data(), n);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(rounded[i], RoundToBf16(values[i])) << values[i];
    const float one = WidenBf16(rounded[i]);
    ASSERT_EQ(std::memcmp(&widened[i], &one, sizeof(one)), 0) << values[i];
    ASSERT_EQ(std::memcmp(&kept[i], &one, sizeof(one)), 0) << values[i];
  }
}

}  // namespace
}  // namespace millrace::kernels
