// Answers are those of Rollouts, log-probabilities those of training's loss, whatever is batched beside them.
#include "serve/engine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/job_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/rows.h"
#include "model/adapters/adapter.h"
#include "model/objectives/causal_lm.h"
#include "model/rollouts.h"
#include "serve/tiny_server.h"
#include "testing/status.h"

namespace millrace::serve {
namespace {

using ::testing::HasSubstr;

// All that was said of a sample, and of a prompt.
struct Answer {
  std::string text;
  std::vector<Token> tokens;
  std::vector<float> embedding;
  int64_t drawn = 0;
  Ending ending = Ending::kNone;
};
using Answers = std::map<std::pair<int64_t, int64_t>, Answer>;  // by task and sample

Answers ReadAll(Reply* reply) {
  Answers answers;
  while (!reply->done()) {
    absl::StatusOr<std::optional<Piece>> piece = reply->Next(absl::Seconds(60));
    EXPECT_OK(piece);
    if (!piece.ok() || !piece->has_value()) break;
    Answer& answer = answers[{(*piece)->task, (*piece)->sample}];
    EXPECT_EQ(answer.ending, Ending::kNone) << "nothing comes after the end";
    answer.text += (*piece)->text;
    answer.drawn += (*piece)->drawn;
    answer.ending = (*piece)->ending;
    if (!(*piece)->embedding.empty()) answer.embedding = (*piece)->embedding;
    for (Token& token : (*piece)->tokens) answer.tokens.push_back(std::move(token));
  }
  return answers;
}

std::vector<uint32_t> IdsOf(const Answer& answer) {
  std::vector<uint32_t> ids;
  for (const Token& token : answer.tokens) ids.push_back(token.id);
  return ids;
}

void ExpectSame(const Answer& one, const Answer& other) {
  EXPECT_EQ(one.text, other.text);
  EXPECT_EQ(one.drawn, other.drawn);
  EXPECT_EQ(one.ending, other.ending);
  EXPECT_EQ(one.embedding, other.embedding);
  ASSERT_EQ(IdsOf(one), IdsOf(other));
  for (size_t i = 0; i < one.tokens.size(); ++i) {
    EXPECT_EQ(one.tokens[i].log_probability, other.tokens[i].log_probability) << i;
    EXPECT_EQ(one.tokens[i].likeliest, other.tokens[i].likeliest) << i;
  }
}

Task TaskOf(uint64_t key, size_t length, int64_t max_tokens) {
  Task task;
  task.prompt = model::RandomIds(key, length, kVocab);
  task.max_tokens = max_tokens;
  task.seed = key;
  task.sampling.temperature = 0.8;
  task.likeliest = 3;
  return task;
}

class EngineTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  std::unique_ptr<Engine> StartEngine(int64_t sequences, int64_t prompt_tokens, int64_t waiting = 1000) {
    auto engine = Engine::Start(
        tiny_.served, {.sequences = sequences, .waiting = waiting, .prompt_tokens = prompt_tokens}, &metrics_);
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  Answers Ask(Engine* engine, std::vector<Task> tasks) {
    auto reply = engine->Submit(std::move(tasks));
    EXPECT_OK(reply);
    return ReadAll(reply->get());
  }
  // Tasks of all kinds: lengths from one token to the whole context, samples, penalties, stops, scores, embeddings.
  std::vector<Task> ManyTasks() {
    std::vector<Task> tasks;
    uint64_t key = 20;
    for (const auto& [length, max_tokens, samples] : std::vector<std::array<int64_t, 3>>{
             {1, 30, 1}, {70, 100, 2}, {5, 40, 5}, {80, 3, 1}, {33, 0, 2}, {9, 1, 1}, {66, 12, 3}, {2, 79, 1}}) {
      Task& task = tasks.emplace_back(TaskOf(++key, static_cast<size_t>(length), max_tokens));
      task.samples = samples;
      task.stop_tokens = {5};
      if (key % 2 == 0) task.score_prompt = true;
      if (key % 3 == 0) task.stop_strings = {"AB", "Q"};
      if (key % 4 == 0) task.frequency_penalty = 0.7;
      if (key % 4 == 1) task.sampling.top_k = 10;
      if (key % 5 == 0) task.embed = true;
    }
    return tasks;
  }

  TinyModel tiny_{GetParam().first, GetParam().second, 2};
  Metrics metrics_;
};
INSTANTIATE_TEST_SUITE_P(Models, EngineTest,
                         ::testing::Values(std::make_pair("gpt2", "f32"), std::make_pair("llama", "f32"),
                                           std::make_pair("llama", "bf16")),
                         [](const auto& info) { return absl::StrCat(info.param.first, "_", info.param.second); });

TEST_P(EngineTest, AnswersAreTheSameBitsAloneAndInCompany) {
  const std::vector<Task> tasks = ManyTasks();
  Answers alone;
  const auto one = StartEngine(1, 256);
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (auto& [key, answer] : Ask(one.get(), {tasks[i]})) alone[{i, key.second}] = answer;
  }
  // More at a time than there are seats, and as many; prompts in small and in large parts.
  for (const auto& [sequences, prompt_tokens] : std::vector<std::pair<int64_t, int64_t>>{{1, 3}, {4, 7}, {40, 50}}) {
    const auto engine = StartEngine(sequences, prompt_tokens);
    for (int round = 0; round < 2; ++round) {
      const Answers together = Ask(engine.get(), tasks);
      ASSERT_EQ(together.size(), alone.size());
      for (const auto& [key, answer] : together) {
        SCOPED_TRACE(absl::StrCat("task ", key.first, " sample ", key.second, " of ", sequences));
        ExpectSame(answer, alone[key]);
      }
    }
  }
  // Samples of one prompt differ.
  EXPECT_NE(IdsOf(alone[{2, 0}]), IdsOf(alone[{2, 1}]));
}

TEST_P(EngineTest, AModelIsServedWithAndWithoutAdaptersAtOnce) {
  std::vector<v1::AdapterSpec> specs(3);
  specs[0].set_type("lora");
  specs[0].set_dora(true);
  specs[0].add_targets("all-linear");
  specs[1].set_type("prompt_tuning");
  specs[1].set_virtual_tokens(6);
  specs[2].set_type("llama_adapter");
  std::vector<std::unique_ptr<model::Adapter>> adapters;
  std::vector<std::vector<float>> weights;
  std::vector<std::unique_ptr<kernels::Compute>> computes;
  std::vector<model::ActiveAdapter> active;
  for (v1::AdapterSpec& spec : specs) {
    FillAdapterDefaults(tiny_.network->spec(), &spec);
    adapters.push_back(*model::Adapter::Create(spec, tiny_.network->spec(), tiny_.network->linear_sites()));
    weights.push_back(model::RandomWeights(adapters.back()->tensors(), 7));
    computes.push_back(std::make_unique<kernels::Compute>(kernels::DetectIsa(), 1));
    tiny_.network->ReserveVirtualTokens(adapters.back()->virtual_tokens());
  }
  for (size_t i = 0; i < specs.size(); ++i) active.push_back({adapters[i].get(), weights[i].data()});
  std::vector<std::unique_ptr<Engine>> engines;
  engines.push_back(StartEngine(4, 10));
  for (size_t i = 0; i < specs.size(); ++i) {
    ServedModel served = tiny_.served;
    served.name = specs[i].type();
    served.compute = computes[i].get();
    served.weights = {tiny_.weights.data(), absl::MakeConstSpan(&active[i], 1)};
    engines.push_back(*Engine::Start(served, {.sequences = 4, .waiting = 100, .prompt_tokens = 10}, &metrics_));
    EXPECT_EQ(engines.back()->context(), kContext - (specs[i].type() == "prompt_tuning" ? 6 : 0));
  }
  Task task = TaskOf(5, 20, 200);
  task.samples = 3;
  std::vector<std::unique_ptr<Reply>> replies;
  for (const auto& engine : engines) replies.push_back(*engine->Submit({task}));
  std::set<std::vector<uint32_t>> different;
  for (size_t i = 0; i < engines.size(); ++i) {
    model::NetworkWeights used = tiny_.weights.data();
    if (i > 0) used.adapters = absl::MakeConstSpan(&active[i - 1], 1);
    const int64_t context = kContext - used.virtual_tokens();
    const kernels::Compute compute(kernels::DetectIsa(), 1);
    model::Rollouts rollouts = *model::Rollouts::Create(tiny_.network.get(), &compute, 4, context);
    model::Prompt prompt = {task.prompt, {}};
    for (uint64_t sample = 0; sample < 3; ++sample) prompt.keys.push_back(model::SamplingKey(task.seed, sample));
    const auto expected = rollouts.Sample(used, {&prompt, 1}, {task.sampling, task.max_tokens, {}});
    ASSERT_OK(expected);
    Answers answers = ReadAll(replies[i].get());
    for (int64_t sample = 0; sample < 3; ++sample) {
      EXPECT_EQ(IdsOf(answers[{0, sample}]), (*expected)[static_cast<size_t>(sample)].ids) << i;
    }
    different.insert(IdsOf(answers[{0, 0}]));
  }
  EXPECT_EQ(different.size(), engines.size());
}

TEST_P(EngineTest, DrawsWhatRolloutsDraw) {
  model::Rollouts rollouts = *model::Rollouts::Create(tiny_.network.get(), &tiny_.compute, 4, kContext);
  const auto engine = StartEngine(3, 10);
  for (const double temperature : {0.8, 0.0}) {
    Task task = TaskOf(3, 20, 200);
    task.samples = 4;
    task.stop_tokens = {11};
    task.sampling = {.temperature = temperature, .top_k = 20, .top_p = 0.9};
    model::Prompt prompt = {task.prompt, {}};
    for (uint64_t i = 0; i < 4; ++i) prompt.keys.push_back(model::SamplingKey(task.seed, i));
    const auto expected =
        rollouts.Sample(tiny_.weights.data(), {&prompt, 1}, {task.sampling, task.max_tokens, task.stop_tokens});
    ASSERT_OK(expected);
    Answers answers = Ask(engine.get(), {task});
    for (int64_t sample = 0; sample < 4; ++sample) {
      std::vector<uint32_t> ids = (*expected)[static_cast<size_t>(sample)].ids;
      const Answer& answer = answers[{0, sample}];
      EXPECT_EQ(answer.drawn, static_cast<int64_t>(ids.size()));
      const bool stopped = ids.back() == 11;
      if (stopped) ids.pop_back();
      EXPECT_EQ(IdsOf(answer), ids);
      EXPECT_EQ(answer.ending, stopped ? Ending::kStop : Ending::kLength);
      EXPECT_EQ(answer.text, tiny_.tokenizer->Decode(ids));
      if (!stopped) {
        EXPECT_EQ(ids.size(), static_cast<size_t>(kContext + 1 - 20));
      }
    }
  }
}

TEST_P(EngineTest, ScoresAreTheBitsOfTrainingsLoss) {
  const auto engine = StartEngine(2, 9);
  // The prompt is scored, and the answer as the rest of the same text.
  Task task = TaskOf(8, 50, 20);
  task.score_prompt = true;
  Answers answers = Ask(engine.get(), {task});
  std::vector<uint32_t> ids = task.prompt;
  std::vector<std::optional<float>> scores;
  for (const Token& token : answers[{0, -1}].tokens) scores.push_back(token.log_probability);
  EXPECT_EQ(IdsOf(answers[{0, -1}]), task.prompt);
  for (const Token& token : answers[{0, 0}].tokens) {
    ids.push_back(token.id);
    scores.push_back(token.log_probability);
  }
  const auto columns = static_cast<int64_t>(ids.size());
  model::CausalLm causal_lm =
      *model::CausalLm::Create(tiny_.network.get(), &tiny_.compute, columns - 1, columns - 1, false);
  std::vector<float> expected(ids.size() - 1);
  ASSERT_OK(causal_lm.Loss(tiny_.weights.data(), {ids.data(), 1, columns}, &model::IgnoreGroup, expected.data()));
  ASSERT_EQ(scores.size(), ids.size());
  EXPECT_FALSE(scores[0].has_value()) << "nothing comes before the first token";
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_EQ(scores[i], expected[i - 1]) << i;
}

TEST_P(EngineTest, TheLikeliestAreADistribution) {
  const auto engine = StartEngine(2, 64);
  Task task = TaskOf(9, 12, 10);
  task.likeliest = kVocab;
  task.score_prompt = true;
  for (const auto& [key, answer] : Ask(engine.get(), {task})) {
    for (const Token& token : answer.tokens) {
      if (!token.log_probability.has_value()) continue;
      ASSERT_EQ(token.likeliest.size(), kVocab);
      double sum = 0;
      float last = 0;
      for (const auto& [id, log_probability] : token.likeliest) {
        EXPECT_LE(log_probability, last);
        last = log_probability;
        sum += std::exp(static_cast<double>(log_probability));
        if (id == token.id) {
          EXPECT_EQ(log_probability, token.log_probability);
        }
      }
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  }
}

TEST_P(EngineTest, PenaltiesTakeOffTheLogitsOfWhatWasDrawn) {
  const auto engine = StartEngine(2, 64);
  Task task = TaskOf(10, 6, 40);
  task.sampling.temperature = 0;
  const Answer plain = Ask(engine.get(), {task})[{0, 0}];
  task.frequency_penalty = 0.75;
  task.presence_penalty = 0.5;
  task.likeliest = kVocab;
  const Answer penalised = Ask(engine.get(), {task})[{0, 0}];
  EXPECT_NE(IdsOf(penalised), IdsOf(plain));
  std::map<uint32_t, int> counts;
  for (const Token& token : penalised.tokens) {
    const auto value = [&](uint32_t id, double log_probability) {
      return log_probability - 0.75 * counts[id] - (counts[id] > 0 ? 0.5 : 0);
    };
    double largest = -1e30;
    for (const auto& [id, log_probability] : token.likeliest) {
      largest = std::max(largest, value(id, static_cast<double>(log_probability)));
    }
    EXPECT_NEAR(value(token.id, static_cast<double>(*token.log_probability)), largest, 1e-4);
    ++counts[token.id];
  }
}

TEST_P(EngineTest, EmbeddingsAreMeansOfOutputs) {
  const auto engine = StartEngine(2, 7);
  Task task = TaskOf(11, 40, 0);
  task.embed = true;
  const std::vector<float> embedding = Ask(engine.get(), {task})[{0, -1}].embedding;
  const int64_t hidden = tiny_.network->hidden_size();
  const auto memory = *tiny_.network->NewMemory(40, 40, false);
  const auto outputs = tiny_.network->Forward(tiny_.compute, tiny_.weights.data(), {task.prompt.data(), 1, 40, 40}, {},
                                              &model::IgnoreGroup, memory.get());
  ASSERT_OK(outputs);
  ASSERT_EQ(embedding.size(), static_cast<size_t>(hidden));
  for (int64_t i = 0; i < hidden; ++i) {
    double sum = 0;
    for (int64_t token = 0; token < 40; ++token) sum += static_cast<double>((*outputs)[token * hidden + i]);
    EXPECT_NEAR(embedding[static_cast<size_t>(i)], sum / 40, 1e-5);
  }
}

TEST_P(EngineTest, StopStringsMaySpanTokens) {
  const auto engine = StartEngine(2, 64);
  Task task = TaskOf(12, 6, 60);
  const Answer whole = Ask(engine.get(), {task})[{0, 0}];
  ASSERT_EQ(whole.text.size(), 60u);
  // The first occurrence of three of its characters.
  const std::string stop = whole.text.substr(20, 3);
  const size_t at = whole.text.find(stop);
  task.stop_strings = {"never in there", stop};
  const Answer cut = Ask(engine.get(), {task})[{0, 0}];
  EXPECT_EQ(cut.text, whole.text.substr(0, at));
  EXPECT_EQ(cut.ending, Ending::kStop);
  EXPECT_EQ(cut.tokens.size(), at) << "tokens of what was cut off are not told";
  EXPECT_EQ(cut.drawn, static_cast<int64_t>(at + 3)) << "but they were drawn";
}

TEST_P(EngineTest, ALongPromptDoesNotHoldUpTheOthers) {
  Task quick = TaskOf(13, 1, 20), slow = TaskOf(14, 70, 1);
  // All pieces of one submission come through one queue, in the order in which they are made.
  const auto order = [&](int64_t prompt_tokens) {
    const auto engine = StartEngine(2, prompt_tokens);
    auto reply = engine->Submit({quick, slow});
    EXPECT_OK(reply);
    int64_t before = 0;
    for (bool read = false; !(*reply)->done();) {
      const auto piece = (*reply)->Next(absl::Seconds(60));
      if (!piece.ok() || !piece->has_value()) break;
      read |= (*piece)->task == 1;
      if (!read) before += (*piece)->drawn;
    }
    return before;
  };
  EXPECT_EQ(order(3), 20) << "24 steps to read the long prompt, 20 to answer";
  EXPECT_LE(order(100), 1) << "read at once";
}

TEST_P(EngineTest, WhatNobodyReadsIsGivenUp) {
  const auto engine = StartEngine(1, 64);
  Task task = TaskOf(15, 4, 70);
  task.samples = 100'000;  // the only seat would be taken for minutes
  auto reply = engine->Submit({task});
  ASSERT_OK(reply);
  ASSERT_OK((*reply)->Next(absl::Seconds(60)));
  reply->reset();
  task.samples = 1;
  EXPECT_EQ(Ask(engine.get(), {task}).size(), 2u);
  EXPECT_FALSE(absl::StrContains(metrics_.Text(), "millrace_serve_cancelled_total{model=\"tiny\"} 0\n"));
  EXPECT_TRUE(absl::StrContains(metrics_.Text(), "millrace_serve_waiting_sequences{model=\"tiny\"} 0\n"));
}

TEST_P(EngineTest, AFullQueueTakesNoMore) {
  const auto engine = StartEngine(1, 64, /*waiting=*/2);
  Task task = TaskOf(16, 4, 70);
  task.samples = 100'000;
  const auto reply = engine->Submit({task});
  ASSERT_OK(reply);
  task.samples = 1;
  const absl::Status full = engine->Submit({task}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(full.message(), HasSubstr("where 2 may"));
}

TEST_P(EngineTest, RefusesPromptsThatCannotBe) {
  const auto engine = StartEngine(2, 64);
  const auto error = [&](std::vector<uint32_t> prompt) {
    Task task = TaskOf(17, 4, 1);
    task.prompt = std::move(prompt);
    const absl::Status status = engine->Submit({TaskOf(17, 4, 1), task}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(error({}), "prompt 1 is empty");
  EXPECT_EQ(error(std::vector<uint32_t>(81, 1)), "prompt 1 has 81 tokens where the context has 80");
  EXPECT_THAT(error({1, 37}), HasSubstr("37"));
  for (const EngineOptions& options :
       {EngineOptions{.sequences = 0}, EngineOptions{.waiting = 0}, EngineOptions{.prompt_tokens = 0}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Engine::Start(tiny_.served, options, &metrics_).status()));
  }
}

TEST_P(EngineTest, AModelWithoutNumbersIsAnError) {
  std::fill(tiny_.weights.begin(), tiny_.weights.end(), NAN);
  const auto engine = StartEngine(2, 100);
  for (const bool score : {false, true}) {
    Task task = TaskOf(18, 75, 5);  // more rows than are looked at together
    task.score_prompt = score;
    const auto reply = engine->Submit({task});
    ASSERT_OK(reply);
    const absl::Status status = (*reply)->Next(absl::Seconds(60)).status();
    if (status.ok()) {  // of the prompt
      EXPECT_FALSE(score);
      EXPECT_TRUE(absl::IsInternal((*reply)->Next(absl::Seconds(60)).status()));
    } else {
      EXPECT_TRUE(absl::IsInternal(status)) << status;
    }
  }
}

TEST_P(EngineTest, TellsThoseWhoWaitThatItEnds) {
  const auto engine = StartEngine(1, 64);
  Task task = TaskOf(19, 4, 70);
  task.samples = 100'000;
  const auto reply = engine->Submit({task, task});
  ASSERT_OK(reply);
  engine->End();
  EXPECT_TRUE(absl::IsUnavailable((*reply)->Next(absl::Seconds(60)).status()));
  EXPECT_TRUE(absl::IsUnavailable(engine->Submit({task}).status()));
}

}  // namespace
}  // namespace millrace::serve
