#include "blocks/fixed_point.h"

#include <xmmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::blocks {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> Numbers(uint64_t key, size_t n, int most_halvings) {
  std::vector<float> numbers(n);
  for (size_t i = 0; i < n; ++i) {
    const auto words = Philox(key)(0, i);
    numbers[i] = std::ldexp(2.0f * UniformFloat(words[0]) - 1.0f, -static_cast<int>(words[1] % most_halvings));
  }
  return numbers;
}

std::string Coded(const std::vector<float>& values, const Coding& coding, uint64_t clipped = 0) {
  std::string coded = "what was there before";
  const auto count = Encode(values, coding, &coded);
  EXPECT_OK(count);
  EXPECT_EQ(count.value_or(~uint64_t{0}), clipped);
  return coded;
}

std::vector<int64_t> Sums(const std::vector<float>& values, const Coding& coding, uint64_t clipped = 0) {
  std::vector<int64_t> sums(values.size(), 0);
  EXPECT_OK(AddTo(Coded(values, coding, clipped), coding, absl::MakeSpan(sums)));
  return sums;
}

TEST(FixedPoint, RoundsToTheNearestAndTiesToEven) {
  const std::vector<float> values = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 0.49f, 2.51f, 1000, -0.0f};
  for (const uint32_t bits : {16u, 32u, 64u}) {
    EXPECT_THAT(Sums(values, {bits, 0}), ElementsAre(0, 2, 2, 0, -2, -2, 0, 3, 1000, 0));
    EXPECT_THAT(Sums({3, 5, 7}, {bits, 1}), ElementsAre(2, 2, 4));
    EXPECT_THAT(Sums({3, 5, 0.0625f}, {bits, -4}), ElementsAre(48, 80, 1));
  }
}

TEST(FixedPoint, WritesLittleEndianTwosComplement) {
  EXPECT_EQ(Coded({258, -2}, {16, 0}), std::string("\x02\x01\xfe\xff", 4));
  EXPECT_EQ(Coded({258, -2}, {32, 0}), std::string("\x02\x01\0\0\xfe\xff\xff\xff", 8));
  EXPECT_EQ(Coded({-2}, {64, 0}), "\xfe\xff\xff\xff\xff\xff\xff\xff");
}

TEST(FixedPoint, ValuesBeyondTheLimitAreCutOffAndCounted) {
  EXPECT_THAT(Sums({32767, 32767.4f, 32768, -32767, -40000, 3e38f, -3e38f}, {16, 0}, 5),
              ElementsAre(32767, 32767, 32767, -32767, -32767, 32767, -32767));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  EXPECT_THAT(Sums({2147483520, 2147483648, -2147483648, 1e30f}, {32, 0}, 3),
              ElementsAre(2147483520, kMost, -kMost, kMost));
  EXPECT_THAT(
      Sums({127.99f, 128, 200, -1e30f}, Coding(), 2),
      ElementsAre(std::llround(std::ldexp(static_cast<double>(127.99f), 36)), kStartLimit, kStartLimit, -kStartLimit));
}

// The vectorised path takes 16 at a time; one alone takes the other.
TEST(FixedPoint, PlaceInTheBlockChangesNothing) {
  std::vector<float> values = Numbers(1, 200, 30);
  const std::vector<float> edges = {0.5f,   1.5f,      -0.5f,     32767.5f,   -32767.5f, 32766.5f, 3e38f,
                                    -3e38f, 0x1p-126f, 0x1p-149f, -0x1p-130f, -0.0f,     2.5f,     32768.0f};
  for (size_t i = 0; i < 10; ++i) values.insert(values.begin() + static_cast<long>(17 * i), edges.begin(), edges.end());
  for (const bool flush : {false, true}) {
    const unsigned int before = _mm_getcsr();
    if (flush) _mm_setcsr(before | 0x8040);
    for (const int exponent : {kMinExponent, -36, -14, 0, 7, kMaxExponent}) {
      for (const uint32_t bits : {16u, 32u, 64u}) {
        const Coding coding = {bits, exponent};
        for (const size_t n : {size_t{1}, size_t{15}, size_t{16}, size_t{33}, values.size()}) {
          const std::vector<float> some(values.begin(), values.begin() + static_cast<long>(n));
          std::string together, one, alone;
          const uint64_t clipped = *Encode(some, coding, &together);
          uint64_t clipped_alone = 0;
          for (const float value : some) {
            clipped_alone += *Encode({&value, 1}, coding, &one);
            alone += one;
          }
          EXPECT_EQ(together, alone) << bits << " bits, exponent " << exponent << ", " << n << " values";
          EXPECT_EQ(clipped, clipped_alone);
        }
      }
    }
    _mm_setcsr(before);
  }
}

TEST(FixedPoint, DenormalsCodeAsZerosWhetherFlushedOrNot) {
  for (const uint32_t bits : {16u, 32u, 64u}) {
    EXPECT_THAT(Sums({0x1p-126f, 0x1.fffffcp-127f, -0x1p-149f}, {bits, kMinExponent}), ElementsAre(0, 0, 0));
  }
}

TEST(FixedPoint, SumsAreExactInAnyOrder) {
  for (const uint32_t bits : {16u, 32u, 64u}) {
    const Coding coding = {bits, bits == 16 ? -14 : -28};
    constexpr size_t kUnits = 7, kSize = 50;
    std::vector<std::string> units;
    std::vector<double> exact(kSize, 0);
    for (size_t unit = 0; unit < kUnits; ++unit) {
      const std::vector<float> values = Numbers(10 + unit, kSize, 6);
      units.push_back(Coded(values, coding));
      // Each value's rounding, as std::nearbyint does it.
      for (size_t i = 0; i < kSize; ++i) {
        exact[i] += std::nearbyint(std::ldexp(static_cast<double>(values[i]), -coding.exponent));
      }
    }
    std::vector<int64_t> forwards(kSize, 0), backwards(kSize, 0);
    for (size_t unit = 0; unit < kUnits; ++unit) {
      ASSERT_OK(AddTo(units[unit], coding, absl::MakeSpan(forwards)));
      ASSERT_OK(AddTo(units[kUnits - 1 - unit], coding, absl::MakeSpan(backwards)));
    }
    EXPECT_EQ(forwards, backwards);
    for (size_t i = 0; i < kSize; ++i) {
      EXPECT_EQ(static_cast<double>(forwards[i]), exact[i]);
      EXPECT_EQ(Decode(forwards[i], coding), static_cast<float>(std::ldexp(exact[i], coding.exponent)));
    }
  }
}

TEST(FixedPoint, DecodesAtBothEndsOfTheExponents) {
  EXPECT_EQ(Decode(3, {16, kMinExponent}), std::ldexp(3.0f, kMinExponent));
  EXPECT_EQ(Decode(-5, {16, kMaxExponent}), std::ldexp(-5.0f, kMaxExponent));
  EXPECT_EQ(Decode(0, {16, 0}), 0.0f);
  EXPECT_EQ(Decode(int64_t{1} << 62, Coding()), std::ldexp(1.0f, 26));
}

TEST(FixedPoint, RefusesWhatIsNotFinite) {
  for (const float bad :
       {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(40, 1.0f);
    values[33] = bad;
    std::string coded;
    const absl::Status refused = Encode(values, {16, 0}, &coded).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused));
    EXPECT_THAT(std::string(refused.message()), HasSubstr("element 33 is not finite"));
  }
}

TEST(FixedPoint, RefusedBytesAddNothing) {
  std::vector<int64_t> sums = {1, 2};
  for (const uint32_t bits : {16u, 32u, 64u}) {
    const Coding coding = {bits, 0};
    const std::string coded = Coded({1, 1}, coding);
    for (const std::string& bad : {coded + "x", coded.substr(1), std::string(), coded + coded}) {
      EXPECT_TRUE(absl::IsInvalidArgument(AddTo(bad, coding, absl::MakeSpan(sums))));
    }
    // The most negative integer, which has no positive counterpart, behind a good one.
    std::string beyond = coded;
    std::memset(beyond.data() + bits / 8, 0, bits / 8);
    beyond.back() = '\x80';
    EXPECT_TRUE(absl::IsInvalidArgument(AddTo(beyond, coding, absl::MakeSpan(sums))));
  }
  EXPECT_THAT(sums, ElementsAre(1, 2));
}

TEST(FixedPoint, SumOfAsManyAsThereCanBeDoesNotOverflow) {
  const std::string coded = Coded({1e30f, -1e30f}, Coding(), 2);
  std::vector<int64_t> sums(2, 0);
  for (int i = 0; i < 1 << 19; ++i) ASSERT_OK(AddTo(coded, Coding(), absl::MakeSpan(sums)));
  EXPECT_THAT(sums, ElementsAre(int64_t{1} << 62, -(int64_t{1} << 62)));
}

TEST(FixedPoint, NextCodingHoldsFourTimesTheLastSum) {
  for (const uint32_t bits : {16u, 32u}) {
    for (const uint64_t largest : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{4}, uint64_t{5}, uint64_t{32767},
                                   uint64_t{32768}, uint64_t{32769}, uint64_t{1} << 62, (uint64_t{1} << 62) - 1}) {
      const Coding next = NextCoding(Coding(), largest, bits);
      EXPECT_EQ(next.bits, bits);
      const double range = std::ldexp(1.0, next.exponent + static_cast<int>(bits) - 1);
      const double wanted = 4 * std::ldexp(static_cast<double>(largest), kStartExponent);
      EXPECT_GE(range, wanted);
      // The smallest that does.
      EXPECT_LT(range / 2, wanted);
    }
  }
}

TEST(FixedPoint, NextCodingFallsByAFactorOfTwoAtMostAndRisesAtOnce) {
  EXPECT_EQ(NextCoding({16, -10}, 1, 16), (Coding{16, -11}));
  EXPECT_EQ(NextCoding({16, -10}, 8192, 16), (Coding{16, -10}));
  EXPECT_EQ(NextCoding({16, -10}, 8193, 16), (Coding{16, -9}));
  EXPECT_EQ(NextCoding({16, -10}, 32767 * 1024, 16), (Coding{16, 2}));
  // Another width starts anew.
  EXPECT_EQ(NextCoding({32, -30}, 1, 16), (Coding{16, -43}));
}

TEST(FixedPoint, ArraysAreDecodedAsSingleSums) {
  for (const int most : {0, 1, 15, 31, 34, 50, 51, 52, 62}) {
    std::vector<int64_t> sums;
    for (int i = 0; i < 600; ++i) {  // some whole pieces, and a rest
      const int64_t magnitude = static_cast<int64_t>((uint64_t{1} << most) - 1) >> (i % (most + 1));
      sums.push_back(i % 2 == 0 ? magnitude : -magnitude);
    }
    for (const Coding& coding : {Coding{16, kMinExponent}, Coding{16, -20}, Coding{32, kMaxExponent}, Coding()}) {
      std::vector<float> values(sums.size());
      EXPECT_EQ(DecodeSums(absl::MakeConstSpan(sums), coding, values.data()), (uint64_t{1} << most) - 1);
      for (size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(values[i], Decode(sums[i], coding)) << sums[i];
      if (most > 31) continue;
      const std::vector<int32_t> narrow(sums.begin(), sums.end());
      std::fill(values.begin(), values.end(), 7.0f);
      EXPECT_EQ(DecodeSums(absl::MakeConstSpan(narrow), coding, values.data()), (uint64_t{1} << most) - 1);
      for (size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(values[i], Decode(sums[i], coding)) << sums[i];
    }
  }
}

TEST(FixedPoint, NextCodingStaysAfterASumOfZeros) {
  EXPECT_EQ(NextCoding({16, -10}, 0, 16), (Coding{16, -10}));
  EXPECT_EQ(NextCoding(Coding(), 0, 16), Coding());
}

TEST(FixedPoint, NextCodingStaysWithinTheBounds) {
  EXPECT_EQ(NextCoding({16, kMinExponent}, 1, 16), (Coding{16, kMinExponent}));
  EXPECT_EQ(NextCoding({16, kMaxExponent}, uint64_t{1} << 40, 16), (Coding{16, kMaxExponent}));
}

TEST(FixedPoint, CodingsSurviveTheWire) {
  for (const Coding& coding : {Coding(), Coding{16, kMinExponent}, Coding{32, kMaxExponent}}) {
    EXPECT_EQ(*CodingFromProto(CodingToProto(coding)), coding);
  }
  EXPECT_EQ(*CodingFromProto(v1::Coding()), Coding());
  for (const Coding& bad : {Coding{8, 0}, Coding{17, 0}, Coding{16, kMinExponent - 1}, Coding{16, kMaxExponent + 1}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CodingFromProto(CodingToProto(bad)).status()));
  }
}

}  // namespace
}  // namespace millrace::blocks
