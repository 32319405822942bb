#include "evaluation/tasks_file.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "common/yaml_message.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::evaluation {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kTasks[] = R"(tasks:
  - name: weather
    type: choice
    data: [weather.jsonl]
    prompt: "{{ question }}"
    choices: ["{{ good }}", "{{ bad }}"]
    answer_index: "0"
  - name: sums
    type: exact_match
    data: [sums.jsonl]
    prompt: "{{ a }} + {{ b }} ="
    answer: "{{ sum }}"
    few_shot: 2
)";

std::string Refusal(const std::string& yaml) {
  const auto tasks = ParseTasks(yaml, "t.yaml");
  EXPECT_FALSE(tasks.ok()) << yaml;
  return std::string(tasks.status().message());
}

// kTasks with a part of it replaced.
std::string With(const std::string& part, const std::string& other) {
  EXPECT_THAT(kTasks, HasSubstr(part));
  return absl::StrReplaceAll(kTasks, {{part, other}});
}

TEST(TasksFile, AbsentFieldsGetTheirDefaults) {
  const auto tasks = ParseTasks(kTasks, "t.yaml");
  ASSERT_OK(tasks);
  ASSERT_EQ(tasks->tasks_size(), 2);
  const v1::TaskSpec& weather = tasks->tasks(0);
  EXPECT_EQ(weather.separator(), "\n\n");
  EXPECT_EQ(weather.target_delimiter(), " ");
  EXPECT_EQ(weather.description(), "");
  EXPECT_EQ(weather.few_shot(), 0u);
  EXPECT_FALSE(weather.chat());
  EXPECT_FALSE(weather.has_limit());
  EXPECT_THAT(weather.metrics(), ElementsAre("acc", "acc_norm", "acc_bytes"));
  const v1::TaskSpec& sums = tasks->tasks(1);
  EXPECT_EQ(sums.max_tokens(), 64u);
  EXPECT_EQ(sums.temperature(), 0);
  EXPECT_THAT(sums.normalize(), ElementsAre("strip"));
  EXPECT_THAT(sums.metrics(), ElementsAre("exact_match"));
}

TEST(TasksFile, EveryDefaultKeepsItsOwnRule) {
  v1::TaskSpec task;
  FillRuleDefaults(&task);
  const google::protobuf::Descriptor& descriptor = *v1::TaskSpec::descriptor();
  for (const char* field : {"name", "type"}) {
    task.GetReflection()->SetString(&task, descriptor.FindFieldByName(field), field[0] == 'n' ? "a" : "choice");
  }
  task.add_data("x.jsonl");
  EXPECT_OK(CheckRules(task));
  EXPECT_THAT(task.pass_at(), ElementsAre(1));
  EXPECT_EQ(task.source(), "{{ generated }}");
}

TEST(TasksFile, MistakesHaveTheirLineAndTheNearestName) {
  EXPECT_EQ(Refusal(With("choices:", "choises:")),
            "t.yaml:6: unknown field 'choises' in tasks.0; did you mean 'choices'?");
  EXPECT_EQ(Refusal(With("type: choice", "type: choise")),
            "t.yaml:3: tasks.0.type: there is no 'choise'; did you mean 'choice'?");
  EXPECT_EQ(Refusal(With("few_shot: 2", "few_shot: 1001")),
            "t.yaml:13: tasks.1.few_shot: it must be at most 1000, not 1001");
  EXPECT_THAT(Refusal("tasks: 3"), HasSubstr("t.yaml:1: tasks must be a list"));
  EXPECT_THAT(Refusal("[]"), HasSubstr("t.yaml:1: the tasks must be fields"));
  EXPECT_THAT(Refusal("tasks: []"), HasSubstr("t.yaml: tasks is missing"));
  EXPECT_THAT(Refusal("tasks: [{name: a"), HasSubstr("this is not YAML"));
  EXPECT_THAT(Refusal("a: 1\n---\nb: 2\n"), HasSubstr("a tasks file is one document"));
  EXPECT_THAT(Refusal(std::string(kMaxYamlBytes + 1, '#')), HasSubstr("a tasks file has at most 1048576"));
}

TEST(TasksFile, FieldsOfOtherTypesAreRefused) {
  EXPECT_EQ(Refusal(With("answer_index: \"0\"", "answer_index: \"0\"\n    max_tokens: 3")),
            "t.yaml: tasks.0.max_tokens: only for exact_match, pass_fail, not choice");
  EXPECT_EQ(Refusal(With("few_shot: 2", "choices: [a, b]")),
            "t.yaml: tasks.1.choices: only for choice, not exact_match");
  EXPECT_EQ(Refusal(With("few_shot: 2", "metrics: [acc]")),
            "t.yaml: tasks.1.metrics.0: the type exact_match has exact_match, not acc");
  // Whatever is restricted is a field.
  EXPECT_EQ(Refusal(With("answer_index: \"0\"", "answer_index: \"0\"\n    memory_mb: 64")),
            "t.yaml: tasks.0.memory_mb: only for pass_fail, not choice");
}

TEST(TasksFile, WhatATypeNeedsIsNamed) {
  EXPECT_EQ(Refusal(With("    choices: [\"{{ good }}\", \"{{ bad }}\"]\n", "")),
            "t.yaml: tasks.0: choices or choices_from is missing: what a choice is made of");
  EXPECT_EQ(Refusal(With("answer_index: \"0\"", "choices_from: options")),
            "t.yaml: tasks.0: choices and choices_from: one of them");
  EXPECT_EQ(Refusal(With("    answer_index: \"0\"\n", "")),
            "t.yaml: tasks.0: answer or answer_index is missing: which choice is right");
  EXPECT_EQ(Refusal(With("[\"{{ good }}\", \"{{ bad }}\"]", "[a]")),
            "t.yaml: tasks.0.choices: at least two are wanted");
  EXPECT_EQ(Refusal(With("    answer: \"{{ sum }}\"\n", "")),
            "t.yaml: tasks.1: answer or answers_from is missing: what is right");
  EXPECT_EQ(Refusal(With("name: sums", "name: weather")), "t.yaml: tasks.1.name: there is already a task weather");
  EXPECT_THAT(Refusal(With("name: sums", "name: a/b")), HasSubstr("tasks.1.name: 'a/b' is no name"));
  EXPECT_THAT(Refusal(With("    type: choice\n", "")), HasSubstr("tasks.0.type is missing"));
  EXPECT_EQ(Refusal("tasks: [{name: a, type: perplexity, data: [x]}]"),
            "t.yaml: tasks.0: target is missing: the text that is predicted");
  EXPECT_EQ(Refusal("tasks: [{name: a, type: perplexity, data: [x], target: '{{t}}', chat: true}]"),
            "t.yaml: tasks.0: prompt is missing: what the user says in a chat");
}

TEST(TasksFile, TemplatesAndExpressionsAreParsed) {
  EXPECT_THAT(Refusal(With("{{ question }}", "{{ question }")), HasSubstr("t.yaml: tasks.0.prompt: line 1"));
  EXPECT_THAT(Refusal(With("{{ good }}", "{% for %}")), HasSubstr("t.yaml: tasks.0.choices.0: line 1"));
  EXPECT_THAT(Refusal(With("few_shot: 2", "extract: '('")),
              HasSubstr("t.yaml: tasks.1.extract: '(' is no regular expression: missing )"));
  EXPECT_EQ(Refusal(With("few_shot: 2", "normalize: [none, strip]")), "t.yaml: tasks.1.normalize: none stands alone");
  EXPECT_EQ(Refusal(With("few_shot: 2", "stop: ['']")), "t.yaml: tasks.1.stop.0: empty text");
}

TEST(TasksFile, ProgramsNeedWhatTheyAreJudgedBy) {
  const std::string head = "tasks: [{name: a, type: pass_fail, data: [x], ";
  EXPECT_EQ(Refusal(head + "prompt: p}]"), "t.yaml: tasks.0: program is missing: what accepts what is generated");
  EXPECT_EQ(Refusal(head + "program: [./check], few_shot: 1}]"),
            "t.yaml: tasks.0: answer is missing: what few-shot examples show behind their prompts");
  EXPECT_EQ(Refusal(head + "program: [./check], pass_at: [1, 10], samples: 5, temperature: 1}]"),
            "t.yaml: tasks.0.pass_at.1: 10 is more than the 5 samples");
  EXPECT_EQ(Refusal(head + "program: [./check], samples: 5}]"),
            "t.yaml: tasks.0.temperature: at 0 all 5 samples are the same");
  EXPECT_THAT(Refusal(head + "program: [./check], file: ../x}]"), HasSubstr("tasks.0.file: '../x' is no name"));
  EXPECT_THAT(Refusal(head + "program: [./check, '{{'], samples: 1}]"), HasSubstr("tasks.0.program.1: line 1"));
}

TEST(TasksFile, AFileThatCannotBeReadIsNamed) {
  EXPECT_THAT(std::string(ReadTasksFile("/nowhere/t.yaml").status().message()), HasSubstr("/nowhere/t.yaml"));
  const text::TemporaryFolder folder;
  EXPECT_OK(ReadTasksFile(folder.Write("t.yaml", kTasks)));
}

}  // namespace
}  // namespace millrace::evaluation
