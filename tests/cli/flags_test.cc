#include "cli/flags.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Values {
  std::string model;
  std::string job = "none";
  int64_t tokens = 100;
  double temperature = 1;
  bool json = false;
  std::vector<std::string> set;
};

absl::Status Parse(std::vector<std::string> arguments, Values* values) {
  Flags flags("generate", "Continues a prompt.", "--model M");
  flags.Text("model", "M", "the model", &values->model).Required();
  flags.Positional("JOB", "the job", &values->job);
  flags.Integer("max-tokens", "N", "tokens to make", &values->tokens, 1, 1000);
  flags.Number("temperature", "T", "0: the likeliest token", &values->temperature, 0, 100);
  flags.Switch("json", "print JSON", &values->json);
  flags.List("set", "FIELD=VALUE", "override", &values->set);
  return flags.Parse(arguments);
}

TEST(Flags, ReadsEveryKind) {
  Values v;
  ASSERT_OK(Parse(
      {"--model", "m", "kjv", "--max-tokens=7", "--temperature", "0.5", "--json", "--set", "a.b=1", "--set", "c=2=3"},
      &v));
  EXPECT_EQ(v.model, "m");
  EXPECT_EQ(v.job, "kjv");
  EXPECT_EQ(v.tokens, 7);
  EXPECT_EQ(v.temperature, 0.5);
  EXPECT_TRUE(v.json);
  EXPECT_THAT(v.set, ElementsAre("a.b=1", "c=2=3"));
}

TEST(Flags, AbsentFlagsKeepTheirValues) {
  Values v;
  ASSERT_OK(Parse({"--model=x"}, &v));
  EXPECT_EQ(v.tokens, 100);
  EXPECT_EQ(v.job, "none");
  EXPECT_FALSE(v.json);
}

TEST(Flags, ValuesMayLookLikeFlags) {
  Values v;
  ASSERT_OK(Parse({"--model", "--json", "--", "--job"}, &v));
  EXPECT_EQ(v.model, "--json");
  EXPECT_EQ(v.job, "--job");
  EXPECT_FALSE(v.json);
}

TEST(Flags, NamesTheNearestFlag) {
  Values v;
  const absl::Status status = Parse({"--model", "m", "--max-token", "3"}, &v);
  EXPECT_TRUE(IsUsageError(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("did you mean --max-tokens?"));
}

TEST(Flags, RefusesWhatIsWrong) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--model is missing"},
      {{"--model"}, "needs a value"},
      {{"--model", "m", "--max-tokens", "0"}, "from 1 to 1000, not '0'"},
      {{"--model", "m", "--max-tokens", "1e3"}, "whole number"},
      {{"--model", "m", "--temperature", "nan"}, "takes a number"},
      {{"--model", "m", "--json=yes"}, "takes no value"},
      {{"--model", "m", "a", "b"}, "'b' is one argument too many"},
      {{"--model", "m", "--model", "n"}, "given twice"},
      {{"--model", "m", "--zzzzzz", "n"}, "there is no --zzzzzz"},
  };
  for (const auto& [arguments, message] : cases) {
    Values v;
    const absl::Status status = Parse(arguments, &v);
    EXPECT_TRUE(IsUsageError(status)) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(Flags, HelpShowsDefaultsAndAnExample) {
  Values v;
  ::testing::internal::CaptureStdout();
  const absl::Status status = Parse({"--help"}, &v);
  const std::string help = ::testing::internal::GetCapturedStdout();
  EXPECT_TRUE(IsHelpShown(status));
  EXPECT_FALSE(IsUsageError(status));
  EXPECT_THAT(help, HasSubstr("Continues a prompt."));
  EXPECT_THAT(help, HasSubstr("--max-tokens N"));
  EXPECT_THAT(help, HasSubstr("(default 100)"));
  EXPECT_THAT(help, HasSubstr("(required)"));
  EXPECT_THAT(help, HasSubstr("Example:\n  millrace generate --model M"));
}

}  // namespace
}  // namespace millrace::cli
