// Tasks with a little model, against its log-probabilities of one text at a time and its greedy continuations.
#include "evaluation/run_task.h"

#include <cmath>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "evaluation/tasks_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/formats/hugging_face.h"
#include "model/tiny_models.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::evaluation {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

constexpr int64_t kContext = 48;

class RunTaskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Make(*text::TrainCharacters(
        [](const auto& each) { return each("\n .,?:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"); },
        {"<|endoftext|>"}));
  }

  void Make(const std::unique_ptr<text::Tokenizer>& tokenizer) {
    model::Configuration configuration;
    configuration.spec = model::TinySpec("llama");
    configuration.spec.set_context(kContext);
    configuration.vocab_size = tokenizer->vocab_size();
    const std::unique_ptr<model::Network> network = model::NewNetwork(configuration.spec, configuration.vocab_size);
    const std::vector<float> weights = model::RandomWeights(network->tensors(), 1);
    ASSERT_OK(model::WriteModel(folder_.path(), configuration, network->tensors(), weights.data()));
    folder_.Write("tokenizer.json", tokenizer->ToJson());
    model_ = *model::LanguageModel::Open(folder_.path(), &compute_);
  }

  void MakeBytes() {
    text::BpeTraining training;
    training.vocab_size = 258;  // <|endoftext|>, the bytes, and "th"
    training.special_tokens = {};
    Make(*text::TrainBpe(training, [](const auto& each) { return each("th th th th"); }));
  }

  absl::StatusOr<TaskResult> Run(const std::string& fields, const text::ChatTemplate* chat_template = nullptr,
                                 bool allow_programs = true) {
    const auto tasks = ParseTasks(absl::StrCat("tasks:\n  - {name: t, data: [d.jsonl], ", fields, "}\n"), "t.yaml");
    if (!tasks.ok()) return tasks.status();
    const auto questions = MakeQuestions(tasks->tasks(0), folder_.path());
    if (!questions.ok()) return questions.status();
    return RunTask(tasks->tasks(0), *questions, {model_.get(), &compute_, chat_template},
                   {folder_.path(), allow_programs});
  }

  TaskResult Result(const std::string& fields, const text::ChatTemplate* chat_template = nullptr) {
    auto result = Run(fields, chat_template);
    EXPECT_OK(result);
    return result.ok() ? *std::move(result) : TaskResult();
  }

  void Data(const std::vector<Json>& examples) {
    std::string lines;
    for (const Json& example : examples) absl::StrAppend(&lines, example.dump(), "\n");
    folder_.Write("d.jsonl", lines);
  }

  // Σ log p of the last `scored` tokens.
  double SumOf(const std::vector<uint32_t>& ids, size_t scored) {
    const auto all = model_->LogProbabilities(ids, model_->context());
    EXPECT_OK(all);
    double sum = 0;
    for (size_t i = all->size() - scored; i < all->size(); ++i) sum += (*all)[i];
    return sum;
  }
  double SumOf(const std::string& context, const std::string& continuation) {
    const auto ids = *model_->EncodeDocument(context + continuation);
    return SumOf(ids, ids.size() - model_->EncodeDocument(context)->size());
  }

  // The greedy continuation, with the document's end.
  std::string Greedy(const std::string& prompt, int64_t tokens) {
    std::string text;
    const auto status =
        model_->Generate(*model_->EncodeDocument(prompt), {.temperature = 0}, tokens, 1, [&](uint32_t id, float) {
          text += model_->tokenizer().TokenBytes(id);
          return true;
        });
    EXPECT_OK(status);
    return text;
  }

  static const Metric& MetricOf(const TaskResult& result, const std::string& name) {
    for (const Metric& metric : result.metrics) {
      if (metric.name == name) return metric;
    }
    ADD_FAILURE() << "no " << name;
    return result.metrics[0];
  }

  static std::vector<double> SumsOf(const Metric& metric) {
    std::vector<double> sums;
    for (const Term& term : metric.terms) sums.push_back(term.sum);
    return sums;
  }

  const text::TemporaryFolder folder_;
  const kernels::Compute compute_{kernels::DetectIsa(), 2};
  std::unique_ptr<model::LanguageModel> model_;
};

const char kPairs[] = "type: choice, choices: ['{{ a }}', '{{ b }}'], answer_index: '0'";

TEST_F(RunTaskTest, MinimalPairsAreScoredFromTheBeginningOfADocument) {
  Data(
      {{{"a", "The cat sleeps."}, {"b", "The cat sleep."}}, {{"a", "cab"}, {"b", "Xyz wv"}}, {{"a", "q"}, {"b", "z"}}});
  const TaskResult result = Result(kPairs);
  ASSERT_EQ(result.records.size(), 3u);
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"The cat sleeps.", "The cat sleep."}, {"cab", "Xyz wv"}, {"q", "z"}};
  std::vector<double> acc, norm;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto& [a, b] = pairs[i];
    const double of_a = SumOf("", a), of_b = SumOf("", b);
    EXPECT_EQ(result.records[i]["choices"][0]["log_probability"].get<double>(), of_a) << i;
    EXPECT_EQ(result.records[i]["choices"][1]["log_probability"].get<double>(), of_b) << i;
    EXPECT_EQ(result.records[i]["choices"][0]["tokens"].get<size_t>(), a.size()) << i;
    acc.push_back(of_a >= of_b ? 1 : 0);
    norm.push_back(of_a / static_cast<double>(a.size()) >= of_b / static_cast<double>(b.size()) ? 1 : 0);
  }
  EXPECT_EQ(SumsOf(MetricOf(result, "acc")), acc);
  EXPECT_EQ(SumsOf(MetricOf(result, "acc_norm")), norm);
  EXPECT_EQ(SumsOf(MetricOf(result, "acc_bytes")), norm);
  EXPECT_EQ(MetricOf(result, "acc").measure, Measure::kShare);
  EXPECT_TRUE(result.notes.empty());
}

TEST_F(RunTaskTest, ChoicesStandBehindThePromptAndTheDelimiter) {
  Data({{{"q", "Where?"}, {"a", "here"}, {"b", "nowhere at all"}}});
  const std::string task = absl::StrCat(kPairs, ", prompt: '{{ q }}'");
  const Json record = Result(task).records[0];
  EXPECT_EQ(record["choices"][0]["log_probability"].get<double>(), SumOf("Where?", " here"));
  EXPECT_EQ(record["choices"][1]["log_probability"].get<double>(), SumOf("Where?", " nowhere at all"));
  EXPECT_EQ(record["choices"][1]["tokens"].get<int>(), 15);
  EXPECT_EQ(record["context"], "Where?");
  // White space at the end of the context is predicted with the continuation.
  const Json spaced = Result(absl::StrCat(kPairs, ", prompt: '{{ q }} ', target_delimiter: ''")).records[0];
  EXPECT_EQ(spaced["choices"], record["choices"]);
}

TEST_F(RunTaskTest, LettersOfSeveralBytesCountDifferently) {
  MakeBytes();
  // "ä" is a character of two bytes.
  Data({{{"a", "\xC3\xA4\xC3\xA4\xC3\xA4"}, {"b", "abcd"}}});
  const TaskResult result = Result(kPairs);
  const double a = SumOf("", "\xC3\xA4\xC3\xA4\xC3\xA4"), b = SumOf("", "abcd");
  const Json& chosen = result.records[0]["chosen"];
  EXPECT_EQ(chosen["acc"].get<int>(), a >= b ? 0 : 1);
  EXPECT_EQ(chosen["acc_norm"].get<int>(), a / 3 >= b / 4 ? 0 : 1);
  EXPECT_EQ(chosen["acc_bytes"].get<int>(), a / 6 >= b / 4 ? 0 : 1);
  EXPECT_NE(chosen["acc_norm"], chosen["acc_bytes"]) << "the example does not tell them apart";
}

TEST_F(RunTaskTest, ATokenAcrossTheBorderIsTheContinuations) {
  MakeBytes();
  Data({{{"a", "he"}, {"b", "a"}}});
  const Json record = Result(absl::StrCat(kPairs, ", prompt: 'at', target_delimiter: ''")).records[0];
  EXPECT_EQ(model_->EncodeDocument("athe")->size(), 4u) << "a, th, e behind the document's beginning";
  EXPECT_EQ(record["choices"][0]["tokens"].get<int>(), 2);
  EXPECT_EQ(record["choices"][0]["log_probability"].get<double>(), SumOf("a", "the"));
  EXPECT_EQ(record["choices"][1]["log_probability"].get<double>(), SumOf("at", "a"));
}

TEST_F(RunTaskTest, TheFirstOfEqualsIsChosenAndTiesAreTold) {
  Data({{{"a", "same"}, {"b", "same"}}, {{"a", "one"}, {"b", "two"}}});
  const TaskResult result = Result(absl::StrCat(kPairs, ", metrics: [acc, acc_bytes]"));
  EXPECT_EQ(SumsOf(MetricOf(result, "acc"))[0], 1);
  EXPECT_THAT(result.notes, ElementsAre(std::pair<std::string, uint64_t>("ties in acc", 1),
                                        std::pair<std::string, uint64_t>("ties in acc_bytes", 1)));
  EXPECT_EQ(result.metrics.size(), 2u);
}

TEST_F(RunTaskTest, LongContextsLoseTheirBeginningAndThatIsTold) {
  const std::string prompt(60, 'p');
  Data({{{"q", prompt}, {"a", "yes"}, {"b", "no"}}, {{"q", "short"}, {"a", "yes"}, {"b", "no"}}});
  const TaskResult result = Result(absl::StrCat(kPairs, ", prompt: '{{ q }}'"));
  EXPECT_THAT(result.notes, ElementsAre(std::pair<std::string, uint64_t>("contexts cut", 1)));
  std::vector<uint32_t> ids = *model_->EncodeDocument(prompt + " yes");
  ids.erase(ids.begin(), ids.end() - (kContext + 1));
  EXPECT_EQ(result.records[0]["choices"][0]["log_probability"].get<double>(), SumOf(ids, 4));
  EXPECT_EQ(result.records[0]["choices"][0]["context_tokens_cut"].get<int>(), 65 - 49);
}

TEST_F(RunTaskTest, InAChatChoicesAreWhatTheAssistantSays) {
  v1::ChatSpec spec;
  spec.set_template_("plain");
  const auto chat = text::ChatTemplate::Load(spec, model_->tokenizer(), "");
  ASSERT_OK(chat);
  Data({{{"q", "Where?"}, {"a", "here"}, {"b", "there"}}, {{"q", "When?"}, {"a", "now"}, {"b", "never"}}});
  const std::string task = absl::StrCat(kPairs, ", prompt: '{{ q }}', chat: true, few_shot: 1, few_shot_pick: first");
  const Json record = Result(task, &*chat).records[0];
  // The template by hand; the end of a turn is one token.
  const auto encode = [&](const std::string& text) { return *model_->tokenizer().Encode(text); };
  const std::vector<uint32_t> before = encode("User: When?\nAssistant: now<|endoftext|>\nUser: Where?\nAssistant:");
  const std::vector<uint32_t> all = encode("User: When?\nAssistant: now<|endoftext|>\nUser: Where?\nAssistant: there");
  ASSERT_GT(all.size(), static_cast<size_t>(kContext)) << "so that the cut is seen too";
  const std::vector<uint32_t> last(all.end() - (kContext + 1), all.end());
  EXPECT_EQ(record["choices"][1]["log_probability"].get<double>(), SumOf(last, all.size() - before.size()));
  EXPECT_EQ(record["choices"][1]["tokens"].get<int>(), 6);
  EXPECT_EQ(record["messages"][1]["content"], "now");
  EXPECT_THAT(std::string(Run(task).status().message()), HasSubstr("task t: chat: the model has no chat template"));
}

TEST_F(RunTaskTest, PerplexityIsOfWordsAndBytes) {
  Data({{{"t", "one two three."}}, {{"t", std::string(100, 'x') + " y"}}});
  const TaskResult result = Result("type: perplexity, target: '{{ t }}'");
  const double first = SumOf("", "one two three."), second = SumOf("", std::string(100, 'x') + " y");
  // A long text is scored in blocks of the context.
  EXPECT_THAT(SumsOf(MetricOf(result, "word_perplexity")), ElementsAre(first, second));
  EXPECT_EQ(MetricOf(result, "word_perplexity").terms[0].weight, 3);
  EXPECT_EQ(MetricOf(result, "word_perplexity").terms[1].weight, 2);
  EXPECT_EQ(MetricOf(result, "byte_perplexity").terms[1].weight, 102);
  EXPECT_EQ(MetricOf(result, "bits_per_byte").terms[0].weight, 14);
  EXPECT_NEAR(EstimateOf(Measure::kBitsPerWeight, MetricOf(result, "bits_per_byte").terms, 1).value,
              -(first + second) / std::log(2) / 116, 1e-12);
  // A prompt is seen, not predicted.
  const TaskResult behind = Result("type: perplexity, prompt: 'so:', target: '{{ t }}', limit: 1");
  EXPECT_THAT(SumsOf(MetricOf(behind, "bits_per_byte")), ElementsAre(SumOf("so:", " one two three.")));
}

TEST_F(RunTaskTest, GreedyAnswersAreComparedWithTheRightOnes) {
  const std::string one = Greedy("What is", 12), two = Greedy("Who", 12);
  Data({{{"q", "What is"}, {"a", {"no", "  " + one + "\n"}}}, {{"q", "Who"}, {"a", {two + "x"}}}});
  const TaskResult result = Result("type: exact_match, prompt: '{{ q }}', answers_from: a, max_tokens: 12");
  EXPECT_EQ(result.records[0]["generated"].get<std::string>(), one);
  EXPECT_EQ(result.records[1]["generated"].get<std::string>(), two);
  EXPECT_THAT(SumsOf(MetricOf(result, "exact_match")), ElementsAre(1, 0));
  EXPECT_EQ(result.records[0]["ended_by"], "max_tokens");
  EXPECT_THAT(result.notes, ElementsAre(std::pair<std::string, uint64_t>("answers cut at max_tokens", 2)));
}

TEST_F(RunTaskTest, AnswersEndBeforeStopTexts) {
  const std::string all = Greedy("What is", 12), stop = all.substr(4, 2);
  const std::string before = all.substr(0, all.find(stop));
  Data({{{"q", "What is"}}});
  const TaskResult result = Result(
      absl::StrCat("type: exact_match, prompt: '{{ q }}', answer: x, max_tokens: 12, stop: [", Json(stop).dump(), "]"));
  EXPECT_EQ(result.records[0]["generated"].get<std::string>(), before);
  EXPECT_EQ(result.records[0]["ended_by"], "stop");
  EXPECT_EQ(result.records[0]["tokens"].get<size_t>(), before.size() + 2) << "no token more than that takes";
  const TaskResult missing =
      Result("type: exact_match, prompt: '{{ q }}', answer: x, max_tokens: 12, extract: '0(1)', stop: ['0']");
  EXPECT_TRUE(missing.records[0]["answer"].is_null());
  EXPECT_EQ(missing.notes[0], (std::pair<std::string, uint64_t>("answers not found", 1)));
}

TEST_F(RunTaskTest, LongPromptsLeaveRoomForTheAnswer) {
  const std::string prompt(80, 'p');
  Data({{{"q", prompt}}});
  const TaskResult result = Result("type: exact_match, prompt: '{{ q }}', answer: x, max_tokens: 10");
  EXPECT_EQ(result.records[0]["context_tokens_cut"].get<int>(), 81 - 39);
  EXPECT_EQ(result.notes[0], (std::pair<std::string, uint64_t>("contexts cut", 1)));
  // The last tokens that leave room, then ten: nothing is forgotten in between.
  const std::vector<uint32_t> ids = *model_->tokenizer().Encode(std::string(39, 'p'));
  std::string text;
  ASSERT_OK(model_->Generate(ids, {.temperature = 0}, 10, 1, [&](uint32_t id, float) {
    text += model_->tokenizer().TokenBytes(id);
    return true;
  }));
  EXPECT_EQ(result.records[0]["generated"].get<std::string>(), text);
}

TEST_F(RunTaskTest, ProgramsJudgeWhatIsGenerated) {
  folder_.Write("check.sh", "read line < main.txt\ncase \"$line\" in *$1*) exit 0;; esac\necho no $1\nexit 1\n");
  Data({{{"q", "What"}, {"letter", "e"}}, {{"q", "Who"}, {"letter", "A"}}, {{"q", "When"}, {"letter", "0"}}});
  const std::string task =
      "type: pass_fail, prompt: '{{ q }}', max_tokens: 8, samples: 6, temperature: 1.5, pass_at: [1, 3], "
      "program: [/bin/sh, '{{ folder }}/check.sh', '{{ letter }}'], file: main.txt, "
      "source: '{{ generated | replace(\"\n\n\", \" \") }}'";
  const TaskResult result = Result(task);
  std::set<std::string> different;
  for (size_t i = 0; i < 3; ++i) {
    const Json& record = result.records[i];
    const std::string letter = i == 0 ? "e" : i == 1 ? "A" : "0";
    uint64_t passed = 0;
    ASSERT_EQ(record["samples"].size(), 6u);
    for (const Json& sample : record["samples"]) {
      const std::string text = sample["generated"];
      different.insert(text);
      const bool right = text.find(letter) != std::string::npos;
      EXPECT_EQ(sample["passed"].get<bool>(), right) << sample;
      EXPECT_EQ(sample["output"], right ? "" : "no " + letter + "\n");
      passed += right ? 1 : 0;
    }
    EXPECT_EQ(MetricOf(result, "pass@1").terms[i].sum, PassAtK(6, passed, 1));
    EXPECT_EQ(MetricOf(result, "pass@3").terms[i].sum, PassAtK(6, passed, 3));
    if (i == 2) {
      EXPECT_EQ(passed, 0u);
    }
  }
  EXPECT_GT(different.size(), 10u);
  EXPECT_EQ(MetricOf(result, "pass@1").measure, Measure::kMean);
  EXPECT_EQ(result.records, Result(task).records) << "a function of the seed";
  const auto refused = Run(task, nullptr, /*allow_programs=*/false);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--allow-programs"));
}

TEST_F(RunTaskTest, WhatCannotBeAskedNamesTheExample) {
  Data({{{"a", "yes"}, {"b", "no"}}, {{"a", "1"}, {"b", "no"}}});
  EXPECT_THAT(std::string(Run(kPairs).status().message()), HasSubstr("task t: d.jsonl:2: "));
  // Without <|endoftext|> nothing comes before a text.
  Make(*text::TrainCharacters([](const auto& each) { return each("eosnoy "); }));
  Data({{{"a", "yes"}, {"b", "no"}}});
  EXPECT_THAT(std::string(Run(kPairs).status().message()),
              HasSubstr("d.jsonl:1: nothing predicts the first token: the tokenizer has no <|endoftext|>"));
  EXPECT_OK(Run(absl::StrCat(kPairs, ", prompt: 'so'")));
  EXPECT_THAT(std::string(Run("type: exact_match, answer: x").status().message()),
              HasSubstr("d.jsonl:1: an empty prompt"));
}

}  // namespace
}  // namespace millrace::evaluation
