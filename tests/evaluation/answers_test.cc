#include "evaluation/answers.h"

#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::evaluation {
namespace {

AnswerRule Rule(const std::string& extract, const std::string& which = "first",
                const std::vector<std::string>& normalize = {}) {
  v1::TaskSpec task;
  if (!extract.empty()) task.set_extract(extract);
  task.set_extract_which(which);
  for (const std::string& step : normalize) task.add_normalize(step);
  auto rule = AnswerRule::Create(task);
  EXPECT_OK(rule);
  return *std::move(rule);
}

TEST(Answers, AreFoundByAnExpression) {
  const std::string text = "First 12, then 7. The answer is 19.";
  EXPECT_EQ(Rule("").Extract(text), text);
  EXPECT_EQ(Rule(R"(\d+)").Extract(text), "12");
  EXPECT_EQ(Rule(R"(\d+)", "last").Extract(text), "19");
  EXPECT_EQ(Rule(R"(answer is (\d)(\d))").Extract(text), "1");
  EXPECT_EQ(Rule(R"(answer was (\d+))").Extract(text), std::nullopt);
  EXPECT_EQ(Rule("x*", "last").Extract("ab"), "");
  EXPECT_EQ(Rule(R"(a(b)?)").Extract("ac"), "");
  EXPECT_EQ(Rule(R"(^\w+)", "last").Extract("one two"), "one");
  EXPECT_EQ(Rule(R"(\d+)", "last").Extract(""), std::nullopt);
}

TEST(Answers, AnExpressionThatIsNoneIsAnError) {
  v1::TaskSpec task;
  task.set_extract("(");
  EXPECT_EQ(AnswerRule::Create(task).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Answers, AreNormalizedAsAskedFor) {
  const std::string text = " \xC3\x84 'Big', Apple!\n";
  EXPECT_EQ(Rule("").Normalize(text), text);
  EXPECT_EQ(Rule("", "first", {"strip"}).Normalize(text), "\xC3\x84 'Big', Apple!");
  EXPECT_EQ(Rule("", "first", {"lowercase"}).Normalize(text), " \xC3\xA4 'big', apple!\n");
  EXPECT_EQ(Rule("", "first", {"punctuation", "strip", "lowercase"}).Normalize(text), "\xC3\xA4 big apple");
  EXPECT_EQ(Rule("", "first", {"strip"}).Normalize("!"), "!");
  EXPECT_EQ(Rule("", "first", {"strip", "punctuation"}).Normalize(" ! "), "");
  EXPECT_EQ(Rule("").Normalize("a\xFF"
                               "b"),
            "a\xEF\xBF\xBD"
            "b");
}

TEST(Answers, EndBeforeTheFirstStop) {
  google::protobuf::RepeatedPtrField<std::string> stop;
  EXPECT_EQ(BeforeStop("a\n\nb", stop), "a\n\nb");
  *stop.Add() = "b";
  *stop.Add() = "\n\n";
  EXPECT_EQ(BeforeStop("a\n\nb", stop), "a");
  EXPECT_EQ(BeforeStop("ba", stop), "");
  EXPECT_EQ(BeforeStop("a\n", stop), "a\n");
}

// As Python's len(re.split(r"\s+", text)).
TEST(Answers, WordsAreCountedAsTheHarnessDoes) {
  EXPECT_EQ(CountWords("one"), 1u);
  EXPECT_EQ(CountWords("one  two\n three"), 3u);
  EXPECT_EQ(CountWords(" one two "), 4u);
  EXPECT_EQ(CountWords("one\xC2\xA0two"), 2u);
}

}  // namespace
}  // namespace millrace::evaluation
