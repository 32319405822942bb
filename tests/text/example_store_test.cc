#include "text/example_store.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/batch_source.h"
#include "text/example_fixture.h"

namespace millrace::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ExampleStoreTest : public ExampleFixture {};

std::string Line(const std::string& prompt, const std::string& response) {
  return absl::StrCat(R"({"prompt": ")", prompt, R"(", "response": ")", response, "\"}\n");
}

TEST_F(ExampleStoreTest, ScoresWhatTheAssistantSaysAndItsEnd) {
  const auto store =
      Store(ExampleKind::kSft, R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, )"
                               R"({"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, )"
                               R"({"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}]})"
                               "\n" +
                                   Line("x <|endoftext|>", "y"));
  ASSERT_EQ(store->train().size(), 1u);
  ASSERT_EQ(store->held_out().size(), 1u);
  const ExampleRecord record = store->train()[0];
  EXPECT_EQ(Show(*store, store->train(), record.first, record.length),
            "S\n\nUser: a\nAssistant:< b$>\nUser: c\nAssistant:< d$>");
  EXPECT_EQ(record.scored, 6u);
  // What a user writes never becomes a special token.
  const ExampleRecord other = store->held_out()[0];
  EXPECT_EQ(Show(*store, store->held_out(), other.first, other.length), "User: x <|endoftext|>\nAssistant:< y$>");
  EXPECT_EQ(store->end_of_turn(), 0u);
  EXPECT_EQ(store->report().train_scored, 6u);
  EXPECT_EQ(store->report().held_out_scored, 3u);
}

TEST_F(ExampleStoreTest, CutsResponsesAndCountsPromptsThatAreTooLong) {
  // "User: p\nAssistant:" has 18 bytes.
  const std::string lines = Line("p", "0123456789") + Line(std::string(30, 'q'), "r") + Line("p", "01") + Line("p", "");
  const auto report = Prepare(ExampleKind::kSft, lines, 22);
  ASSERT_OK(report);
  EXPECT_EQ(report->truncated, 1u);
  EXPECT_EQ(report->skipped, 2u);
  EXPECT_THAT(report->skips, ElementsAre(HasSubstr("a.jsonl:2: prompt longer than the context"),
                                         HasSubstr("a.jsonl:4: empty response")));
  const auto store = *ExampleStore::Open(folder_ / "out");
  const ExampleRecord record = store->train()[0];
  EXPECT_EQ(record.length, 23u);
  EXPECT_EQ(Show(*store, store->train(), record.first, record.length), "User: p\nAssistant:< 0123>");
  EXPECT_EQ(Show(*store, store->held_out(), 0, store->held_out()[0].length), "User: p\nAssistant:< 01$>");
}

TEST_F(ExampleStoreTest, APromptNeedsRoomForOneTokenOfTheResponse) {
  // The first response token may be a target only: 18 tokens of prompt fit a context of 18 for learning, and of 19 for
  // sampling.
  for (const uint32_t context : {17, 18}) {
    const auto report = Prepare(ExampleKind::kSft, Line("p", "1") + Line("p", "2"), context);
    EXPECT_EQ(report.ok(), context == 18) << report.status();
  }
  for (const uint32_t context : {18, 19}) {
    const auto report = Prepare(ExampleKind::kPrompts, "{\"prompt\": \"p\"}\n{\"prompt\": \"q\"}\n", context);
    EXPECT_EQ(report.ok(), context == 19) << report.status();
  }
}

TEST_F(ExampleStoreTest, APairSharesItsPromptAndIsJudgedByItsLastAnswer) {
  const std::string lines = R"({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes", )"
                            R"("rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no", "margin": 2})"
                            "\n"
                            R"({"prompt": "a", "chosen": "b", "rejected": "cd", "tie": true})"
                            "\n";
  const auto store = Store(ExampleKind::kPairs, lines);
  ExampleRecord record = store->train()[0];
  EXPECT_EQ(Show(*store, store->train(), record.first, record.length),
            "User: a\nAssistant: b$\nUser: c\nAssistant:< yes$>");
  EXPECT_EQ(Show(*store, store->train(), record.first + record.length, record.second),
            "User: a\nAssistant: b$\nUser: c\nAssistant:< no$>");
  EXPECT_EQ(record.value, 2);
  record = store->held_out()[0];
  EXPECT_EQ(record.value, kTie);
  EXPECT_EQ(record.scored, 3u + 4u);
}

TEST_F(ExampleStoreTest, LabelsAndAnswersAreKept) {
  const auto labelled = Store(ExampleKind::kLabelled,
                              "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n"
                              "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": false}\n");
  EXPECT_EQ(labelled->train()[0].value, 1);
  EXPECT_EQ(labelled->held_out()[0].value, -1);
  const auto prompts = Store(ExampleKind::kPrompts, "{\"prompt\": \"1+1\", \"answer\": \"2\"}\n{\"prompt\": \"a\"}\n");
  const auto details = ParsePromptDetails(prompts->train()[0].details);
  ASSERT_OK(details);
  EXPECT_EQ(details->answer, "2");
  EXPECT_THAT(details->messages, ElementsAre(Message{"user", "1+1"}));
  EXPECT_EQ(Show(*prompts, prompts->train(), 0, prompts->train()[0].length), "User: 1+1\nAssistant:");
  EXPECT_EQ(prompts->train()[0].scored, 0u);
  EXPECT_EQ(ParsePromptDetails(prompts->held_out()[0].details)->answer, "");
}

TEST_F(ExampleStoreTest, AnExamplesPartDependsOnItAloneAndDuplicatesCountOnce) {
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += Line(absl::StrCat("p", i), absl::StrCat("r", i));
  const auto shows = [](const ExampleStore& store, const ExampleFile& part) {
    std::set<std::string> all;
    for (uint64_t i = 0; i < part.size(); ++i) all.insert(Show(store, part, part[i].first, part[i].length));
    return all;
  };
  auto report = Prepare(ExampleKind::kSft, lines, 100, 0.2, "hash");
  ASSERT_OK(report);
  EXPECT_GT(report->held_out_examples, 20u);
  EXPECT_LT(report->held_out_examples, 60u);
  const auto store = *ExampleStore::Open(folder_ / "out");
  const std::set<std::string> held_out = shows(*store, store->held_out());
  report = Prepare(ExampleKind::kSft, Line("p0", "other") + lines + lines, 100, 0.2, "hash");
  ASSERT_OK(report);
  EXPECT_EQ(report->duplicates, 200u);
  EXPECT_EQ(report->examples, 201u);
  const auto more = *ExampleStore::Open(folder_ / "out");
  for (const std::string& one : held_out) EXPECT_TRUE(shows(*more, more->held_out()).contains(one)) << one;
}

TEST_F(ExampleStoreTest, IsUsedAgainForTheSameInputsAlone) {
  const std::string lines = Line("a", "b") + Line("c", "d");
  EXPECT_FALSE(Prepare(ExampleKind::kSft, lines)->reused);
  const std::string fingerprint = (*ExampleStore::Open(folder_ / "out"))->fingerprint();
  EXPECT_TRUE(Prepare(ExampleKind::kSft, lines)->reused);
  EXPECT_FALSE(Prepare(ExampleKind::kSft, lines, 999)->reused);
  EXPECT_EQ((*ExampleStore::Open(folder_ / "out"))->fingerprint(), fingerprint) << "the same tokens all the same";
  EXPECT_FALSE(Prepare(ExampleKind::kPrompts, lines)->reused);
  EXPECT_FALSE(Prepare(ExampleKind::kSft, lines + Line("e", "f"))->reused);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/spool.new"));
}

TEST_F(ExampleStoreTest, AFileWithNothingUsableSaysWhatItHasAndWhatIsWanted) {
  const auto report = Prepare(ExampleKind::kSft, "{\"text\": \"a\", \"id\": 1}\n{\"text\": \"b\"}\n");
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(std::string(report.status().message()),
              ::testing::AllOf(HasSubstr("a.jsonl: none of its 2 lines"), HasSubstr("fields found: id, text"),
                               HasSubstr("wanted: {prompt, response}"), HasSubstr("a.jsonl:1: there is no field")));
  folder_.Write("a.txt", "text");
  const auto text =
      PrepareExamples(ExampleKind::kSft, Data("a.txt"), {}, *tokenizer_, 10, folder_.path(), folder_ / "out");
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("JSON Lines"));
}

TEST_F(ExampleStoreTest, ATokenizerThatCannotEndATurnIsAnErrorAndOneThatLacksCharactersSkips) {
  folder_.Write("a.jsonl", Line("a", "b") + Line("a", "é") + Line("b", "a"));
  const auto texts = [](const auto& each) { return each("User: Assistant:\nab"); };
  const auto plain = *TrainCharacters(texts);
  auto report = PrepareExamples(ExampleKind::kSft, Data("a.jsonl"), {}, *plain, 50, folder_.path(), folder_ / "out");
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(std::string(report.status().message()),
              ::testing::AllOf(HasSubstr("'<|endoftext|>'"), HasSubstr("tokenizer.special_tokens")));
  const auto ending = *TrainCharacters(texts, {"<|endoftext|>"});
  report = PrepareExamples(ExampleKind::kSft, Data("a.jsonl"), {}, *ending, 50, folder_.path(), folder_ / "out");
  ASSERT_OK(report);
  EXPECT_EQ(report->examples, 2u);
  EXPECT_THAT(report->skips, ElementsAre(HasSubstr("a.jsonl:2: the character U+00E9")));
}

TEST_F(ExampleStoreTest, NoticesWhatWasCutOrAltered) {
  Store(ExampleKind::kSft, Line("a", "b") + Line("c", "d"));
  const std::string whole = folder_.Read("out/train.examples");
  const auto error = [&](const std::string& name, const std::string& bytes) {
    folder_.Write("out/" + name, bytes);
    return std::string(ExampleStore::Open(folder_ / "out").status().message());
  };
  EXPECT_THAT(error("train.examples", whole.substr(0, whole.size() - 1)), HasSubstr("truncated"));
  std::string altered = whole;
  altered[64] ^= 1;
  EXPECT_THAT(error("train.examples", altered), HasSubstr("train.examples was altered"));
  EXPECT_EQ(error("train.examples", whole), "");
  std::filesystem::remove(folder_ / "out/manifest.json");
  EXPECT_TRUE(absl::IsNotFound(ExampleStore::Open(folder_ / "out").status()));
}

}  // namespace
}  // namespace millrace::text
