#include "worker/reward_programs.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

RewardProgram Make(const std::string& type, const std::string& pattern = "", uint32_t target = 0) {
  v1::RewardSpec spec;
  spec.set_type(type);
  spec.set_pattern(pattern);
  spec.set_target(target);
  return *RewardProgram::Create(spec);
}

TEST(RewardProgramTest, LengthIsBestAtTheTarget) {
  const RewardProgram length = Make("length", "", 10);
  EXPECT_EQ(length.Reward({"", 10, ""}), 1);
  EXPECT_DOUBLE_EQ(length.Reward({"", 5, ""}), 0.5);
  EXPECT_DOUBLE_EQ(length.Reward({"", 14, ""}), 0.6);
  EXPECT_EQ(length.Reward({"", 40, ""}), 0);
}

TEST(RewardProgramTest, PatternsMatchSomewhereUnlessTheyAreTied) {
  EXPECT_EQ(Make("pattern", "[0-9]+").Reward({"about 12 of them", 1, ""}), 1);
  EXPECT_EQ(Make("pattern", "^[0-9]+$").Reward({"about 12 of them", 1, ""}), 0);
  v1::RewardSpec spec;
  spec.set_type("pattern");
  spec.set_pattern("(");
  EXPECT_THAT(RewardProgram::Create(spec).status().message(), HasSubstr("pattern '(': missing"));
}

TEST(RewardProgramTest, AnswersAreComparedButForWhiteSpaceAround) {
  const RewardProgram answer = Make("answer");
  EXPECT_EQ(answer.Reward({" 1 2 3\n", 1, "1 2 3"}), 1);
  EXPECT_EQ(answer.Reward({"1 2  3", 1, "1 2 3"}), 0);
}

TEST(RewardProgramTest, NumbersAreComparedAsNumbers) {
  const RewardProgram number = Make("number");
  EXPECT_EQ(number.Reward({"5 and 7 make 1,012.", 1, "#### 1012.0"}), 1);
  EXPECT_EQ(number.Reward({"it is -3", 1, "3"}), 0);
  EXPECT_EQ(number.Reward({"none", 1, "none"}), 0);
}

TEST(RewardProgramTest, TheLastNumberOfAText) {
  EXPECT_THAT(LastNumber("a1 b22 c3.50 d"), Optional(3.5));
  EXPECT_THAT(LastNumber("12,345,678"), Optional(12345678.0));
  EXPECT_THAT(LastNumber("1,2"), Optional(2.0));
  EXPECT_EQ(LastNumber("no"), std::nullopt);
}

}  // namespace
}  // namespace millrace::worker
