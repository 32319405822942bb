// Objectives: their gradients against finite differences of their losses, over all the models that they learn with; and
// what rollouts say of answers.
#include "worker/objective.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/job_file.h"
#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/objectives/token_scores.h"
#include "model/tensor_list.h"
#include "testing/status.h"
#include "text/batch_source.h"
#include "text/tokenizer.h"
#include "worker/padded_rows.h"

namespace millrace::worker {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr char kJob[] = R"(
name: objectives
data: {sources: [{path: text.txt}]}
model: {family: gpt2, layers: 2, hidden_size: 16, heads: 2, context: 12, init_std: 0.3}
phases:
  - {name: base, global_batch: 4, stop: {max_steps: 1}}
  - {name: r, objective: reward, data: {sources: [{path: p.jsonl}]}, global_batch: 4, stop: {max_steps: 1}, centering: 0.3}
  - name: x
    objective: OBJECTIVE
    from: base@best
    data: {sources: [{path: x.jsonl}]}
    global_batch: 4
    evaluate: {every_steps: 64}
    stop: {max_steps: 64}
)";

std::string TextOf(const std::vector<uint32_t>& ids) {
  return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t));
}

// One phase's models with weights that differ from model to model.
struct Bench {
  Bench(const std::string& objective, const std::vector<std::string>& overrides, int phase = 2) {
    std::string yaml = kJob;
    yaml.replace(yaml.find("OBJECTIVE"), 9, objective);
    const absl::StatusOr<v1::JobSpec> job = ParseJob(yaml, "job.yaml", overrides);
    EXPECT_OK(job);
    if (!job.ok()) return;
    const absl::StatusOr<std::unique_ptr<text::Tokenizer>> tokenizer =
        text::TrainCharacters([](const auto& each) { return each("0123456789abcdefghij"); }, {"<|endoftext|>"});
    EXPECT_OK(tokenizer);
    context.set_seed(3);
    *context.mutable_model() = job->model();
    context.set_vocab_size((*tokenizer)->vocab_size());
    *context.mutable_phase() = job->phases(phase);
    context.set_tokenizer_json((*tokenizer)->ToJson());
    context.set_end_of_turn(*(*tokenizer)->AddedId("<|endoftext|>"));
    models = *PhaseModels::Create(context);
    table = *models->Table(context.phase());
    weights.resize(static_cast<size_t>(models->floats()));
    uint64_t seed = 10;
    for (const PhaseModel& model : models->models()) {
      model::StartWeights(model.network->tensors(), seed++, weights.data() + model.offset);
    }
    const absl::StatusOr<std::unique_ptr<Objective>> made = Make();
    EXPECT_OK(made);
  }
  absl::StatusOr<std::unique_ptr<Objective>> Make() {
    return MakeObjective(context.phase().objective(), {&compute, &context, models.get(), &table, weights.data()});
  }
  double Gradients(const v1::Microbatch& microbatch, double scale, std::vector<float>* gradients,
                   const google::protobuf::Map<std::string, double>& statistics = {}) {
    gradients->assign(static_cast<size_t>(models->trained_floats()), 0);
    std::unique_ptr<Objective> objective = *Make();
    std::vector<uint32_t> finished;
    const auto final = [&](uint32_t group) {
      finished.push_back(group);
      return absl::OkStatus();
    };
    const absl::StatusOr<double> loss = objective->Gradients(
        {microbatch, model::IgnoreGroup, {}, scale, statistics, gradients->data(), final}, &measured);
    EXPECT_OK(loss);
    return loss.ok() ? *loss : std::nan("");
  }
  // Compares some derivatives of each trained tensor with differences of `loss`.
  void Check(const v1::Microbatch& microbatch, const google::protobuf::Map<std::string, double>& statistics = {}) {
    std::vector<float> gradients, ignored;
    const double scale = 0.25;
    Gradients(microbatch, scale, &gradients, statistics);
    const Philox draw(7);
    int checked = 0;
    double largest = 0;
    for (const PhaseModel& model : models->models()) {
      if (!model.trained) continue;
      for (const model::TensorSpec& tensor : model.network->tensors().tensors()) {
        for (uint64_t i = 0; i < 3; ++i, ++checked) {
          const auto at = static_cast<size_t>(model.offset + tensor.offset + draw(checked, i)[0] % tensor.size);
          const float before = weights[at];
          const float step = 4e-3f;
          weights[at] = before + step;
          const double up = Gradients(microbatch, 0, &ignored, statistics);
          weights[at] = before - step;
          const double down = Gradients(microbatch, 0, &ignored, statistics);
          weights[at] = before;
          const double slope = scale * (up - down) / (2.0 * step);
          EXPECT_NEAR(gradients[at], slope, 2e-3 + 0.02 * std::abs(slope)) << model.prefix << tensor.name;
          largest = std::max(largest, std::abs(slope));
        }
      }
    }
    EXPECT_GT(largest, 0.01);
  }

  kernels::Compute compute{kernels::DetectIsa(), 1};
  v1::PhaseContext context;
  std::unique_ptr<PhaseModels> models;
  v1::TensorTable table;
  std::vector<float> weights;
  Measured measured;
};

// Rows of a prompt and an answer each, side by side.
v1::Microbatch Rows(const std::vector<std::vector<uint32_t>>& sequences, size_t prompt,
                    const std::vector<float>& values) {
  std::vector<PaddedRows::Sequence> rows;
  for (const auto& ids : sequences) rows.push_back({ids, prompt});
  const PaddedRows padded(rows);
  const model::Batch batch = padded.batch();
  const auto count = static_cast<size_t>(batch.rows * batch.columns);
  v1::Microbatch microbatch;
  microbatch.set_rows(static_cast<uint32_t>(batch.rows));
  microbatch.set_columns(static_cast<uint32_t>(batch.columns));
  microbatch.set_tokens(batch.ids, count * sizeof(uint32_t));
  microbatch.set_scored(batch.scored, count);
  microbatch.set_starts(batch.starts, count * sizeof(uint32_t));
  microbatch.set_row_values(values.data(), values.size() * sizeof(float));
  return microbatch;
}

const std::vector<std::vector<uint32_t>>& Pairs() {
  static const auto* const pairs = new std::vector<std::vector<uint32_t>>{
      {1, 2, 3, 4, 5, 20}, {1, 2, 3, 7, 20}, {4, 5, 6, 1, 1, 1, 2, 20}, {4, 5, 6, 9, 20}};
  return *pairs;
}

TEST(ObjectiveTest, RewardsAreLearntFromPairsWithMarginsAndTies) {
  Bench bench("dpo", {}, /*phase=*/1);
  ASSERT_NE(bench.models, nullptr);
  const v1::Microbatch microbatch = Rows(Pairs(), 3, {0.5, 0.5, text::kTie, text::kTie});
  EXPECT_EQ(*(*bench.Make())->Count(microbatch), 2u);
  bench.Check(microbatch);
}

TEST(ObjectiveTest, PreferencesAreLearntFromPairs) {
  for (const std::string objective : {"dpo", "ipo", "orpo"}) {
    SCOPED_TRACE(objective);
    Bench bench(objective, {"phases.2.preference.beta=0.4"});
    ASSERT_NE(bench.models, nullptr);
    EXPECT_EQ(bench.models->Find(kReference) != nullptr, objective != "orpo");
    const v1::Microbatch microbatch = Rows(Pairs(), 3, {0, 0, 0, 0});
    EXPECT_EQ(*(*bench.Make())->Count(microbatch), 2u);
    bench.Check(microbatch);
  }
}

TEST(ObjectiveTest, KtoLearnsFromLabels) {
  Bench bench("kto", {"phases.2.preference.beta=0.4", "phases.2.preference.undesirable_weight=1.3"});
  ASSERT_NE(bench.models, nullptr);
  EXPECT_EQ(*(*bench.Make())->Count(Rows(Pairs(), 3, {1, -1, -1, 1})), 4u);
  // No derivative goes through the reference point, which is 0, and stays there, where there is no other prompt.
  bench.Check(Rows({Pairs()[0]}, 3, {1}));
  bench.Check(Rows({Pairs()[2]}, 3, {-1}));
}

v1::Experience Answer(const std::vector<uint32_t>& ids, uint32_t prompt, const std::string& objective, int seed) {
  v1::Experience experience;
  experience.set_tokens(TextOf(ids));
  experience.set_prompt_tokens(prompt);
  const Philox draw(static_cast<uint64_t>(seed));
  for (uint64_t t = prompt; t < ids.size(); ++t) {
    const auto words = draw(0, t);
    const auto deviate = [&words](int i) { return 2 * UniformFloat(words[static_cast<size_t>(i)]) - 1; };
    experience.add_log_probabilities(-3 + 0.2f * deviate(0));
    if (objective == "grpo") experience.add_reference_log_probabilities(-3 + deviate(1));
    if (objective != "ppo") continue;
    experience.add_values(deviate(2));
    experience.add_advantages(deviate(3));
    experience.add_returns(deviate(1));
  }
  if (objective != "ppo") experience.add_advantages(seed % 2 == 0 ? 0.8 : -0.6);
  return experience;
}

TEST(ObjectiveTest, PoliciesLearnFromExperiences) {
  for (const std::string objective : {"ppo", "grpo", "rloo"}) {
    SCOPED_TRACE(objective);
    std::vector<std::string> overrides = {"phases.2.rewards=[{type: length, target: 3}]",
                                          "phases.2.rollout.samples=4",
                                          "phases.2.rollout.prompts=4",
                                          "phases.2.rollout.temperature=1.4",
                                          "phases.2.policy.clip=5",
                                          "phases.2.policy.entropy_coefficient=0.1"};
    if (objective == "ppo") overrides.push_back("phases.2.policy.value_clip=0");
    Bench bench(objective, overrides);
    ASSERT_NE(bench.models, nullptr);
    v1::Microbatch microbatch;
    *microbatch.add_experiences() = Answer(Pairs()[0], 3, objective, 1);
    *microbatch.add_experiences() = Answer(Pairs()[2], 3, objective, 2);
    EXPECT_EQ(*(*bench.Make())->Count(microbatch), objective == "rloo" ? 2u : 8u);
    google::protobuf::Map<std::string, double> statistics;
    statistics["kl_coefficient"] = 0.3;
    statistics["advantage"] = 0.1;
    statistics["advantage_square"] = 0.4;
    bench.Check(microbatch, statistics);
  }
}

TEST(ObjectiveTest, ExperiencesWithNumbersMissingAreRefused) {
  Bench bench("ppo", {"phases.2.rewards=[{type: length, target: 3}]"});
  v1::Microbatch microbatch;
  *microbatch.add_experiences() = Answer(Pairs()[0], 3, "ppo", 1);
  EXPECT_OK((*bench.Make())->Count(microbatch));
  microbatch.mutable_experiences(0)->mutable_values()->RemoveLast();
  EXPECT_THAT((*bench.Make())->Count(microbatch).status().message(), HasSubstr("3 tokens with numbers of others"));
  microbatch.mutable_experiences(0)->set_prompt_tokens(6);
  EXPECT_THAT((*bench.Make())->Count(microbatch).status().message(), HasSubstr("6 tokens of them a prompt"));
  v1::Microbatch prompts;
  prompts.add_prompts()->set_tokens(std::string(12 * sizeof(uint32_t), '\0'));
  EXPECT_THAT((*bench.Make())->Count(prompts).status().message(), HasSubstr("in a context of 12"));
}

v1::Microbatch Prompts(int first, int count) {
  v1::Microbatch microbatch;
  for (int i = first; i < first + count; ++i) {
    v1::Prompt& prompt = *microbatch.add_prompts();
    prompt.set_index(static_cast<uint64_t>(i));
    prompt.set_tokens(TextOf({static_cast<uint32_t>(i), 3, 4}));
    prompt.set_answer("x");
  }
  return microbatch;
}

std::vector<v1::Experience> RolloutOf(Bench* bench, const v1::Microbatch& microbatch) {
  google::protobuf::Map<std::string, double> statistics;
  statistics["kl_coefficient"] = 0.5;
  auto experiences = (*bench->Make())->Rollout({microbatch, model::IgnoreGroup, statistics}, &bench->measured);
  EXPECT_OK(experiences);
  return experiences.ok() ? *std::move(experiences) : std::vector<v1::Experience>();
}

TEST(ObjectiveTest, AnAnswerDoesNotDependOnWhatIsAnsweredBesides) {
  Bench bench("grpo", {"phases.2.rewards=[{type: length, target: 3}]", "phases.2.rollout.samples=4"});
  const std::vector<v1::Experience> together = RolloutOf(&bench, Prompts(0, 5));
  const std::vector<v1::Experience> alone = RolloutOf(&bench, Prompts(3, 1));
  ASSERT_EQ(together.size(), 20u);
  ASSERT_EQ(alone.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(together[12 + i].SerializeAsString(), alone[i].SerializeAsString());
  }
  EXPECT_NE(alone[0].tokens(), alone[1].tokens());
}

// The ratio of the first step after a rollout is 1 to the bit: sampling and training are one engine.
TEST(ObjectiveTest, LogProbabilitiesOfSamplingAreThoseOfTraining) {
  for (const std::string precision : {"f32", "bf16"}) {
    Bench bench("grpo", {"phases.2.rewards=[{type: length, target: 3}]", "phases.2.rollout.samples=4",
                         "phases.2.rollout.temperature=0.7", "phases.2.policy.kl_coefficient=0.1",
                         "model.precision=" + precision});
    const std::vector<v1::Experience> experiences = RolloutOf(&bench, Prompts(0, 5));
    v1::Microbatch microbatch;
    for (const v1::Experience& experience : experiences) *microbatch.add_experiences() = experience;
    std::vector<float> gradients;
    bench.measured = Measured();
    bench.Gradients(microbatch, 1, &gradients);
    v1::WorkResult result;
    bench.measured.Report(&result);
    for (const v1::Statistic& statistic : result.statistics()) {
      if (statistic.name() == "ratio") {
        EXPECT_EQ(statistic.sum(), statistic.count());
      } else if (statistic.name() == "kl_of_update") {
        EXPECT_EQ(statistic.sum(), 0);
      }
    }
  }
}

TEST(ObjectiveTest, GroupsAreMeasuredAgainstThemselves) {
  for (const std::string objective : {"grpo", "rloo"}) {
    Bench bench(objective, {"phases.2.rewards=[{type: length, target: 3}]", "phases.2.rollout.samples=4"});
    const std::vector<v1::Experience> experiences = RolloutOf(&bench, Prompts(0, 3));
    for (size_t group = 0; group < 3; ++group) {
      double sum = 0;
      for (size_t i = 0; i < 4; ++i) sum += experiences[4 * group + i].advantages(0);
      EXPECT_NEAR(sum, 0, 1e-9);
    }
  }
}

// A group of answers that are worth the same teaches nothing: it is told, and costs no pass.
TEST(ObjectiveTest, GroupsThatAreAlikeAreToldAndTeachNothing) {
  Bench bench("grpo", {"phases.2.rewards=[{type: pattern, pattern: 'no such answer'}]", "phases.2.rollout.samples=4"});
  v1::Microbatch microbatch;
  for (v1::Experience& experience : RolloutOf(&bench, Prompts(0, 3))) *microbatch.add_experiences() = experience;
  v1::WorkResult result;
  bench.measured.Report(&result);
  for (const v1::Statistic& statistic : result.statistics()) {
    if (statistic.name() == "groups_alike") {
      EXPECT_EQ(statistic.sum(), statistic.count());
    }
  }
  std::vector<float> gradients;
  bench.Gradients(microbatch, 1, &gradients);
  EXPECT_THAT(gradients, Each(0.0f));
}

TEST(ObjectiveTest, PpoTakesTheDivergenceFromTheRewardAndTheWorthAtTheEnd) {
  Bench bench("ppo", {"phases.2.rewards=[{type: length, target: 3, weight: 2}]", "phases.2.policy.gamma=1",
                      "phases.2.policy.lambda=1"});
  for (const v1::Experience& experience : RolloutOf(&bench, Prompts(0, 4))) {
    const int tokens = experience.log_probabilities_size();
    ASSERT_EQ(experience.returns_size(), tokens);
    // With γ = λ = 1 returns are sums of rewards to come; the last one lacks only the last token's divergence.
    const double worth = 2 * std::max(0.0, 1 - std::abs(tokens - 3.0) / 3);
    const auto ids = experience.tokens();
    std::vector<uint32_t> sequence(ids.size() / sizeof(uint32_t));
    std::memcpy(sequence.data(), ids.data(), ids.size());
    // The reference's log-probabilities, computed on their own.
    const ModelInUse reference =
        ObjectiveSetting{&bench.compute, &bench.context, bench.models.get(), &bench.table, bench.weights.data()}.Model(
            kReference);
    PassMemory<model::TokenScores> memory(reference.network, &bench.compute, false);
    model::TokenScores* const scores = *memory.For(1, static_cast<int64_t>(sequence.size()) - 1);
    model::Batch batch;
    batch.ids = sequence.data();
    batch.rows = 1;
    batch.columns = static_cast<int64_t>(sequence.size());
    batch.first_scored = experience.prompt_tokens() - 1;
    ASSERT_OK(scores->Forward(reference.weights(), batch, {}, model::IgnoreGroup));
    std::vector<float> log_probabilities(static_cast<size_t>(tokens));
    scores->Score(1, absl::MakeSpan(log_probabilities), {});
    double to_come = worth;
    for (int t = tokens; t-- > 0;) {
      to_come -= 0.5 * (static_cast<double>(experience.log_probabilities(t)) -
                        static_cast<double>(log_probabilities[static_cast<size_t>(t)]));
      EXPECT_NEAR(experience.returns(t), to_come, 1e-5) << t;
    }
  }
}

TEST(ObjectiveTest, AnswersEndWithinTheContext) {
  Bench bench("grpo", {"phases.2.rewards=[{type: length, target: 3}]", "phases.2.rollout.samples=8",
                       "phases.2.policy.missing_end_penalty=1"});
  for (const v1::Experience& experience : RolloutOf(&bench, Prompts(0, 6))) {
    EXPECT_LE(experience.tokens().size() / sizeof(uint32_t), 12u);
  }
}

TEST(ObjectiveTest, APhaseHasNoOtherObjectivesThanItsOwnAndText) {
  Bench bench("dpo", {});
  const ObjectiveSetting setting = {&bench.compute, &bench.context, bench.models.get(), &bench.table,
                                    bench.weights.data()};
  EXPECT_OK(MakeObjective("causal_lm", setting));
  EXPECT_THAT(MakeObjective("reward", setting).status().message(), HasSubstr("no objective 'reward'"));
}

}  // namespace
}  // namespace millrace::worker
