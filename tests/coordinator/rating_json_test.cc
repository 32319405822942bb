#include "coordinator/rating_json.h"

#include <string>

#include "coordinator/rating_order.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::HasSubstr;

TEST(RatingPairLine, GivesAPair) {
  const auto pair = ParseRatingPair(
      R"({"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "a": "Hello",
          "b": "Go away", "source_a": "sft@best", "id": 7})");
  ASSERT_OK(pair);
  ASSERT_EQ(pair->prompt_size(), 2);
  EXPECT_EQ(pair->prompt(0).role(), "system");
  EXPECT_EQ(pair->prompt(1).content(), "Hi");
  EXPECT_EQ(pair->a(), "Hello");
  EXPECT_EQ(pair->b(), "Go away");
  EXPECT_EQ(pair->source_a(), "sft@best");
  EXPECT_EQ(pair->source_b(), "");
  const auto plain = ParseRatingPair(R"({"prompt": "Hi", "a": "Hello", "b": "Go away"})");
  ASSERT_OK(plain);
  EXPECT_EQ(plain->prompt(0).role(), "user");
}

TEST(RatingPairLine, SaysWhatIsWrong) {
  const struct {
    const char* line;
    const char* why;
  } cases[] = {
      {"", "not JSON"},
      {"[1]", "not a JSON object"},
      {R"({"a": "x", "b": "y"})", "no field 'prompt'"},
      {R"({"prompt": "p", "b": "y"})", "no field 'a'"},
      {R"({"prompt": "p", "a": 1, "b": "y"})", "'a' is no string"},
      {R"({"prompt": "p", "a": "x", "b": ["y"]})", "'b' is no string"},
      {R"({"prompt": " ", "a": "x", "b": "y"})", "empty prompt"},
      {R"({"prompt": "p", "a": "x", "b": "x"})", "identical"},
      {R"({"prompt": "p", "a": "x", "b": "y", "source_b": 3})", "'source_b' is no string"},
  };
  for (const auto& one : cases) {
    const absl::Status status = ParseRatingPair(one.line).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << one.line;
    EXPECT_THAT(status.message(), HasSubstr(one.why));
  }
}

TEST(RateRequestBody, TurnsSidesIntoAnswers) {
  const RatingOrder order("set", "ann");
  bool seen[2] = {};
  for (uint64_t pair = 0; pair < 20; ++pair) {
    const std::string begin = R"({"set": "set", "rater": "ann", "pair": )" + std::to_string(pair) + R"(, "choice": ")";
    const auto left = ParseRateRequest(begin + "left\"}");
    const auto right = ParseRateRequest(begin + "right\"}");
    ASSERT_OK(left);
    ASSERT_OK(right);
    EXPECT_EQ(left->pair, pair);
    EXPECT_EQ(left->rating.choice(), order.Swapped(pair) ? v1::Rating::B : v1::Rating::A);
    EXPECT_EQ(right->rating.choice(), order.Swapped(pair) ? v1::Rating::A : v1::Rating::B);
    seen[order.Swapped(pair)] = true;
  }
  EXPECT_TRUE(seen[0] && seen[1]);
  const auto whole = ParseRateRequest(
      R"({"set": "a/b", "rater": "bob", "pair": 3, "choice": "left", "strength": 2, "flagged": true, "note": "n"})");
  ASSERT_OK(whole);
  EXPECT_EQ(whole->set_id, "a/b");
  EXPECT_EQ(whole->rating.rater(), "bob");
  EXPECT_EQ(whole->rating.strength(), 2u);
  EXPECT_TRUE(whole->rating.flagged());
  EXPECT_EQ(whole->rating.note(), "n");
  EXPECT_EQ(ParseRateRequest(R"({"set": "s", "rater": "r", "pair": 0, "choice": "skip"})")->rating.choice(),
            v1::Rating::SKIP);
  EXPECT_EQ(ParseRateRequest(R"({"set": "s", "rater": "r", "pair": 0, "choice": "tie"})")->rating.choice(),
            v1::Rating::TIE);
}

TEST(RateRequestBody, SaysWhatIsWrong) {
  const struct {
    const char* body;
    const char* why;
  } cases[] = {
      {"{", "not JSON"},
      {R"({"rater": "r", "pair": 0, "choice": "tie"})", "no field 'set'"},
      {R"({"set": "s", "pair": 0, "choice": "tie"})", "no field 'rater'"},
      {R"({"set": "s", "rater": "r", "choice": "tie"})", "no field 'pair'"},
      {R"({"set": "s", "rater": "r", "pair": -1, "choice": "tie"})", "'pair' is no whole number"},
      {R"({"set": "s", "rater": "r", "pair": 0.5, "choice": "tie"})", "'pair' is no whole number"},
      {R"({"set": "s", "rater": "r", "pair": 0})", "no field 'choice'"},
      {R"({"set": "s", "rater": "r", "pair": 0, "choice": "a"})", "left, right, tie or skip"},
      {R"({"set": "s", "rater": "r", "pair": 0, "choice": "left", "strength": 4294967297})", "'strength'"},
      {R"({"set": "s", "rater": "r", "pair": 0, "choice": "left", "flagged": 1})", "'flagged'"},
      {R"({"set": "s", "rater": "r", "pair": 0, "choice": "left", "note": null})", "'note' is no string"},
      {R"({"set": "s", "rater": "r", "pair": 0, "choice": "left", "flaged": true})", "unknown field 'flaged'"},
  };
  for (const auto& one : cases) {
    const absl::Status status = ParseRateRequest(one.body).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << one.body;
    EXPECT_THAT(status.message(), HasSubstr(one.why));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseRateRequest(std::string(100000, '[')).status()));
}

TEST(UndoRequestBody, GivesAllFieldsOrSaysWhatIsWrong) {
  const auto undo = ParseUndoRequest(R"({"set": "s", "rater": "r", "pair": 7})");
  ASSERT_OK(undo);
  EXPECT_EQ(undo->pair, 7u);
  EXPECT_EQ(undo->rater, "r");
  for (const char* body : {"", "1", "{}", R"({"set": "s", "rater": "r"})", R"({"set": 1, "rater": "r", "pair": 7})",
                           R"({"set": "s", "rater": "r", "pair": 7, "choice": "tie"})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseUndoRequest(body).status())) << body;
  }
}

}  // namespace
}  // namespace millrace::coordinator
