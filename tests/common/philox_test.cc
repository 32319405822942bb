#include "common/philox.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;

// The lines "philox4x32 10" of kat_vectors in Random123 1.14: counter words 0 to 3, key words 0 and 1, result.
TEST(Philox, MatchesRandom123sKnownAnswers) {
  EXPECT_THAT(Philox(0)(0, 0), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox(~uint64_t{0})(~uint64_t{0}, ~uint64_t{0}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: the digits of pi.
  EXPECT_THAT(Philox(0x299f31d0'a4093822)(0x03707344'13198a2e, 0x85a308d3'243f6a88),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(Philox, DerivedKeysDifferFromEachOtherAndTheirParent) {
  const Philox parent(7);
  std::set<std::array<uint32_t, 4>> draws = {parent(1, 2)};
  for (uint64_t purpose = 0; purpose < 100; ++purpose) draws.insert(parent.Derive(purpose)(1, 2));
  EXPECT_EQ(draws.size(), 101u);
  EXPECT_EQ(parent.Derive(3)(1, 2), Philox(7).Derive(3)(1, 2));
}

TEST(Philox, UniformFloatsAreBelowOne) {
  EXPECT_EQ(UniformFloat(0), 0.0f);
  EXPECT_EQ(UniformFloat(0x80000000), 0.5f);
  EXPECT_EQ(UniformFloat(0xffffffff), 1.0f - 0x1p-24f);
  // The low eight bits count for nothing.
  EXPECT_EQ(UniformFloat(0xff), 0.0f);
}

}  // namespace
}  // namespace millrace
