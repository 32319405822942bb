// What models are asked, as text.
#include "evaluation/questions.h"

#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "evaluation/tasks_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::evaluation {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class QuestionsTest : public ::testing::Test {
 protected:
  QuestionsTest() {
    folder_.Write("q.jsonl",
                  "{\"q\": \"Sky?\", \"options\": [\"blue\", \"red\"], \"right\": 0}\n"
                  "\n"
                  "{\"q\": \"Grass?\", \"options\": [\"grey\", \"green\"], \"right\": 1}\n"
                  "{\"q\": \"Snow?\", \"options\": [\"black\", \"white\", \"pink\"], \"right\": 1}\n");
    folder_.Write("shots.jsonl",
                  "{\"q\": \"Coal?\", \"options\": [\"black\", \"white\"], \"right\": 0}\n"
                  "{\"q\": \"Blood?\", \"options\": [\"blue\", \"red\"], \"right\": 1}\n");
  }

  // Of a task with these further fields.
  absl::StatusOr<std::vector<Question>> Ask(const std::string& fields) const {
    const auto tasks = ParseTasks(absl::StrCat("tasks:\n  - {name: t, ", fields, "}\n"), "t.yaml");
    if (!tasks.ok()) return tasks.status();
    return MakeQuestions(tasks->tasks(0), folder_.path());
  }

  std::vector<Question> Asked(const std::string& fields) const {
    auto questions = Ask(fields);
    EXPECT_OK(questions);
    return questions.ok() ? *std::move(questions) : std::vector<Question>();
  }

  std::string Refusal(const std::string& fields) const { return std::string(Ask(fields).status().message()); }

  const text::TemporaryFolder folder_;
};

const char kChoice[] =
    "type: choice, data: [q.jsonl], prompt: 'Q: {{ q }}\n\n      A:', choices_from: options, answer_index: '{{ right "
    "}}'";

TEST_F(QuestionsTest, PromptsAreTheTemplatesFilledIn) {
  const std::vector<Question> questions = Asked(kChoice);
  ASSERT_EQ(questions.size(), 3u);
  EXPECT_EQ(questions[1].where, "q.jsonl:3");
  EXPECT_EQ(questions[1].context, "Q: Grass?\nA:");
  EXPECT_EQ(questions[1].delimiter, " ");
  EXPECT_THAT(questions[1].continuations, ElementsAre("grey", "green"));
  EXPECT_EQ(questions[1].right, 1u);
  EXPECT_TRUE(questions[1].messages.empty());
  EXPECT_EQ(Asked(absl::StrCat(kChoice, ", limit: 2")).size(), 2u);
}

TEST_F(QuestionsTest, FewShotExamplesStandBeforeThePrompt) {
  const std::vector<Question> questions = Asked(absl::StrCat(
      kChoice, ", few_shot: 2, few_shot_pick: first, few_shot_data: [shots.jsonl], description: Colours."));
  EXPECT_EQ(questions[0].context, "Colours.\n\nQ: Coal?\nA: black\n\nQ: Blood?\nA: red\n\nQ: Sky?\nA:");
  // Of the data itself, without the one that is asked.
  const std::vector<Question> own =
      Asked(absl::StrCat(kChoice, ", few_shot: 1, few_shot_pick: first, separator: ' | ', target_delimiter: '='"));
  EXPECT_EQ(own[0].context, "Q: Grass?\nA:=green | Q: Sky?\nA:");
  EXPECT_EQ(own[1].context, "Q: Sky?\nA:=blue | Q: Grass?\nA:");
  EXPECT_EQ(own[2].context, "Q: Sky?\nA:=blue | Q: Snow?\nA:");
  EXPECT_EQ(own[2].delimiter, "=");
}

TEST_F(QuestionsTest, InAChatTheyAreMessages) {
  const std::vector<Question> questions = Asked(absl::StrCat(
      kChoice,
      ", chat: true, few_shot: 1, few_shot_pick: first, few_shot_data: [shots.jsonl], description: Be brief."));
  EXPECT_THAT(questions[0].messages,
              ElementsAre(text::Message{"system", "Be brief."}, text::Message{"user", "Q: Coal?\nA:"},
                          text::Message{"assistant", "black"}, text::Message{"user", "Q: Sky?\nA:"}));
  EXPECT_EQ(questions[0].context, "");
}

TEST_F(QuestionsTest, MinimalPairsHaveNoContext) {
  folder_.Write("pairs.jsonl", "{\"good\": \"The cat sleeps.\", \"bad\": \"The cat sleep.\"}\n");
  const std::vector<Question> questions =
      Asked("type: choice, data: [pairs.jsonl], choices: ['{{ good }}', '{{ bad }}'], answer_index: '0'");
  EXPECT_EQ(questions[0].context, "");
  EXPECT_EQ(questions[0].delimiter, "");
  EXPECT_THAT(questions[0].continuations, ElementsAre("The cat sleeps.", "The cat sleep."));
}

TEST_F(QuestionsTest, AnAnswerIsOneOfTheChoices) {
  const std::vector<Question> questions = Asked(
      "type: choice, data: [q.jsonl], prompt: '{{ q }}', choices_from: options, answer: ' {{ options[right] }} '");
  EXPECT_EQ(questions[2].right, 1u);
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], choices_from: options, answer: blue"),
            "q.jsonl:3: task t: answer: 'blue' is none of the choices");
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], choices_from: options, answer_index: '{{ right + 1 }}'"),
            "q.jsonl:3: task t: answer_index: a whole number below 2 is wanted, not '2'");
}

TEST_F(QuestionsTest, RightAnswersAndTargetsAreTexts) {
  EXPECT_THAT(Asked("type: exact_match, data: [q.jsonl], answers_from: options")[2].answers,
              ElementsAre("black", "white", "pink"));
  EXPECT_THAT(Asked("type: exact_match, data: [q.jsonl], answer: '{{ options[0] }}'")[2].answers, ElementsAre("black"));
  EXPECT_THAT(Asked("type: perplexity, data: [q.jsonl], target: 'It is {{ options[right] }}.'")[0].continuations,
              ElementsAre("It is blue."));
  const Question program = Asked("type: pass_fail, data: [q.jsonl], prompt: '{{ q }}', program: [./check]")[0];
  EXPECT_EQ(program.context, "Sky?");
  EXPECT_EQ(program.fields["q"], "Sky?");
}

TEST_F(QuestionsTest, MistakesNameFileLineAndField) {
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], prompt: '{{ qq }}', choices_from: options, answer_index: '0'"),
            "q.jsonl:1: task t: prompt: line 1: 'qq' is undefined");
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], choices_from: optoins, answer_index: '0'"),
            "q.jsonl:1: task t: choices_from: the example has no field 'optoins'");
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], choices_from: q, answer_index: '0'"),
            "q.jsonl:1: task t: choices_from: the field 'q' is no list of texts");
  EXPECT_EQ(Refusal("type: choice, data: [q.jsonl], choices: ['{{ q }}', ''], answer_index: '0'"),
            "q.jsonl:1: task t: choices: an empty choice cannot be scored");
  EXPECT_EQ(Refusal(absl::StrCat(kChoice, ", few_shot: 3")), "task t: few_shot: 3 examples are wanted, there are 2");
  EXPECT_EQ(Refusal("type: perplexity, data: [nowhere.jsonl], target: a").substr(0, 14), "task t: data: ");
  EXPECT_THAT(Refusal("type: perplexity, data: [nowhere.jsonl], target: a"), HasSubstr("nowhere.jsonl"));
  EXPECT_EQ(Refusal("type: perplexity, data: [q.jsonl], target: '{{ \"\" }}'"),
            "q.jsonl:1: task t: target: an empty text is not predicted");
  folder_.Write("bad.jsonl", "{\"q\": 1}\n[2]\n");
  EXPECT_EQ(Refusal("type: perplexity, data: [bad.jsonl], target: a"),
            "task t: data: bad.jsonl:2: an object of JSON is wanted, as in {\"field\": …}");
  folder_.Write("bytes.jsonl", "{\"q\": \"\xFF\"}\n");
  EXPECT_THAT(Refusal("type: perplexity, data: [bytes.jsonl], target: a"), HasSubstr("bytes.jsonl:1"));
  folder_.Write("empty.jsonl", "\n");
  EXPECT_THAT(Refusal("type: perplexity, data: [empty.jsonl], target: a"), HasSubstr("task t: data: "));
}

TEST_F(QuestionsTest, DrawsAreOfTheSeedAndTheExample) {
  const std::string drawn = absl::StrCat(kChoice, ", few_shot: 2, ");
  EXPECT_EQ(Asked(drawn + "seed: 1")[0].context, Asked(drawn + "seed: 1")[0].context);
  // The limit changes what is asked, not how.
  EXPECT_EQ(Asked(drawn + "limit: 1")[0].context, Asked(drawn + "seed: 1")[0].context);
  std::set<std::string> contexts;
  for (int seed = 1; seed < 20; ++seed) contexts.insert(Asked(absl::StrCat(drawn, "seed: ", seed))[0].context);
  EXPECT_EQ(contexts.size(), 2u) << "both orders of the two others";
}

TEST(DrawExamples, EveryOneIsDrawnEquallyOften) {
  constexpr size_t kAll = 7, kExcept = 3, kCount = 3, kDraws = 6000;
  std::vector<size_t> at_first(kAll), at_all(kAll);
  for (uint64_t index = 0; index < kDraws; ++index) {
    const std::vector<size_t> drawn = DrawExamples(5, index, kAll, kExcept, kCount);
    EXPECT_EQ(std::set<size_t>(drawn.begin(), drawn.end()).size(), kCount);
    ++at_first[drawn[0]];
    for (const size_t one : drawn) ++at_all[one];
  }
  for (size_t i = 0; i < kAll; ++i) {
    // Five standard deviations of 6000 draws of one in six, or three in six.
    EXPECT_NEAR(static_cast<double>(at_first[i]), i == kExcept ? 0 : 1000, 145) << i;
    EXPECT_NEAR(static_cast<double>(at_all[i]), i == kExcept ? 0 : 3000, 195) << i;
  }
  EXPECT_EQ(at_all[kExcept], 0u);
  std::vector<size_t> whole = DrawExamples(5, 0, kAll, kAll, kAll);
  std::sort(whole.begin(), whole.end());
  EXPECT_THAT(whole, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

}  // namespace
}  // namespace millrace::evaluation
