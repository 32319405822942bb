#include "text/examples.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Example Parse(ExampleKind kind, const std::string& line) {
  absl::StatusOr<Example> example = ParseExample(kind, line);
  EXPECT_OK(example) << line << ": " << example.status();
  return example.ok() ? *std::move(example) : Example();
}

std::string Why(ExampleKind kind, const std::string& line) {
  const absl::StatusOr<Example> example = ParseExample(kind, line);
  EXPECT_FALSE(example.ok()) << line;
  return std::string(example.status().message());
}

TEST(Examples, LayoutsOfSftSayTheSame) {
  const std::vector<Message> wanted = {{"user", "2+2?"}, {"assistant", "4"}};
  for (const char* line :
       {R"({"prompt": "2+2?", "response": "4"})", R"({"prompt": "2+2?", "completion": "4", "id": 7})",
        R"({"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]})",
        R"({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]})",
        R"({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]})",
        R"({"instruction": "2+2?", "input": "", "output": "4"})", R"({"instruction": "2+2?", "output": "4"})"}) {
    EXPECT_EQ(Parse(ExampleKind::kSft, line).messages, wanted) << line;
  }
  EXPECT_THAT(
      Parse(ExampleKind::kSft, R"({"instruction": "Add.", "input": "1 2", "output": "3", "system": "S"})").messages,
      ElementsAre(Message{"system", "S"}, Message{"user", "Add.\n\n1 2"}, Message{"assistant", "3"}));
}

TEST(Examples, LayoutsOfPairsSayTheSame) {
  for (
      const char* line :
      {R"({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "margin": 1.5})",
       R"({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No", "margin": 1.5})",
       R"({"prompt": "Hi", "score_chosen": 8, "score_rejected": 6.5,
               "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
               "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}]})",
       R"({"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello"}],
               "rejected": [{"role": "assistant", "content": "No"}], "margin": 1.5})"}) {
    const Example pair = Parse(ExampleKind::kPairs, line);
    EXPECT_THAT(pair.messages, ElementsAre(Message{"user", "Hi"})) << line;
    EXPECT_EQ(pair.response, "Hello");
    EXPECT_EQ(pair.rejected, "No");
    EXPECT_EQ(pair.margin, 1.5f);
    EXPECT_FALSE(pair.tie);
    EXPECT_EQ(Sha256OfExample(pair),
              Sha256OfExample(Parse(ExampleKind::kPairs,
                                    R"({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "margin": 1.5})")));
  }
  const Example dialogue = Parse(ExampleKind::kPairs,
                                 R"({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "tie": true,
          "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"})");
  EXPECT_THAT(dialogue.messages, ElementsAre(Message{"user", "a"}, Message{"assistant", "b"}, Message{"user", "c"}));
  EXPECT_TRUE(dialogue.tie);
}

TEST(Examples, LabelledAndPrompts) {
  const Example liked = Parse(ExampleKind::kLabelled, R"({"prompt": "p", "completion": "c", "label": true})");
  EXPECT_EQ(liked.response, "c");
  EXPECT_TRUE(liked.label);
  const Example prompt = Parse(ExampleKind::kPrompts, R"({"prompt": "1+1=", "answer": "2"})");
  EXPECT_THAT(prompt.messages, ElementsAre(Message{"user", "1+1="}));
  EXPECT_EQ(prompt.answer, "2");
}

TEST(Examples, SayWhatIsWrong) {
  const std::vector<std::tuple<ExampleKind, std::string, std::string>> cases = {
      {ExampleKind::kSft, R"({"prompt": "a")", "not JSON"},
      {ExampleKind::kSft, "[1]", "not a JSON object"},
      {ExampleKind::kSft, R"({"text": "a"})", "no field 'prompt'; sft needs {prompt, response}"},
      {ExampleKind::kSft, R"({"prompt": "a"})", "no field 'response'"},
      {ExampleKind::kSft, R"({"prompt": 3, "response": "b"})", "prompt is neither a string nor a list"},
      {ExampleKind::kSft, R"({"prompt": "a", "response": "  \n"})", "empty response"},
      {ExampleKind::kSft, R"({"prompt": "", "response": "b"})", "empty prompt"},
      {ExampleKind::kSft, R"({"messages": [{"role": "user", "content": "a"}]})", "the assistant says nothing"},
      {ExampleKind::kSft, R"({"messages": [{"role": "robot", "content": "a"}]})", "messages[0].role is 'robot'"},
      {ExampleKind::kSft, R"({"messages": [{"role": "user", "content": ["a"]}]})", "messages[0].content is no string"},
      {ExampleKind::kPairs, R"({"prompt": "a", "chosen": "b", "rejected": "b"})", "an identical pair"},
      {ExampleKind::kPairs, R"({"prompt": "a", "chosen": "b", "rejected": ""})", "empty response (rejected)"},
      {ExampleKind::kPairs, R"({"chosen": "b", "rejected": "c"})", "does not begin with \"\\n\\nHuman:\""},
      {ExampleKind::kPairs, R"({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1})", "the margin"},
      {ExampleKind::kPairs, R"({"prompt": "a", "chosen": "b", "rejected": "c", "tie": 1})", "'tie'"},
      {ExampleKind::kPairs, R"({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"})",
       "differ before their last answers"},
      {ExampleKind::kLabelled, R"({"prompt": "a", "completion": "b", "label": "yes"})", "'label' is neither"},
      {ExampleKind::kPrompts, R"({"messages": [{"role": "assistant", "content": "a"}]})", "does not end with the user"},
      {ExampleKind::kPrompts, R"({"prompt": "a", "answer": 2})", "'answer' is no string"},
  };
  for (const auto& [kind, line, why] : cases) EXPECT_THAT(Why(kind, line), HasSubstr(why)) << line;
}

TEST(Examples, LinesThatAreLeftOutAreNamedWithTheirPlaceAndFields) {
  TemporaryFolder folder;
  const SourceFile file = {
      .path = folder.Write("a.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n\n{\"q\": 1}\nx\n\xff\n"),
      .shown = "a.jsonl",
      .format = Format::kJsonLines};
  std::vector<std::string> places, skips;
  ExampleSink sink;
  sink.example = [&](Example, const std::string& where) {
    places.push_back(where);
    return absl::OkStatus();
  };
  sink.skip = [&](std::string why) { skips.push_back(std::move(why)); };
  const absl::StatusOr<ExampleLines> lines = ReadExamples(ExampleKind::kSft, file, sink);
  ASSERT_OK(lines);
  EXPECT_EQ(lines->lines, 3u);
  EXPECT_THAT(lines->fields, ElementsAre("q"));
  EXPECT_THAT(places, ElementsAre("a.jsonl:1"));
  EXPECT_THAT(skips, ElementsAre(HasSubstr("a.jsonl:3: there is no field"), HasSubstr("a.jsonl:4: not JSON"),
                                 HasSubstr("a.jsonl:5: byte")));
}

}  // namespace
}  // namespace millrace::text
