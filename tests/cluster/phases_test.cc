// Jobs of several phases: every kind of learning on the same topology, with the same bits on any cluster.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/ratings_client.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/cluster.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A small model of the little language of examples/assistant: pre-trained, then told to answer.
constexpr char kJob[] = R"(
name: phases
data: {sources: [{path: text.txt}], held_out: 0.05, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 280}
model: {family: gpt2, layers: 2, hidden_size: 32, heads: 2, context: 48}
phases:
  - name: pretrain
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 20, max_tokens: 2000}
    stop: {max_steps: 20}
  - name: sft
    objective: sft
    data: {sources: [{path: sft.jsonl}], held_out: 0.05}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 3.0e-3}
    evaluate: {every_steps: 10, max_tokens: 2000}
    stop: {max_steps: 20}
)";

// What makes an assistant of it: a reward model, and four ways to learn from preferences and rewards.
constexpr char kAligned[] = R"(
  - name: reward
    objective: reward
    data: {sources: [{path: pairs.jsonl}], held_out: 0.05}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 3.0e-3}
    evaluate: {every_steps: 10, max_tokens: 500}
    stop: {max_steps: 10}
  - name: ppo
    objective: ppo
    data: {sources: [{path: prompts.jsonl}], held_out: 0.05}
    rewards: [{type: model, from: reward@best}, {type: answer, weight: 0}]
    rollout: {prompts: 16, samples: 2, epochs: 2, max_tokens: 12, evaluation_prompts: 20}
    policy: {kl_target: 0.5}
    global_batch: 16
    microbatch: 4
    optimizer: {lr: 1.0e-3}
    evaluate: {every_steps: 4, max_tokens: 2000}
    stop: {max_steps: 12}
  - name: grpo
    objective: grpo
    from: sft@best
    data: {sources: [{path: prompts.jsonl}], held_out: 0.05}
    rewards: [{type: pattern, pattern: "[89]"}]
    rollout: {prompts: 16, samples: 4, max_tokens: 12, evaluation_prompts: 40}
    policy: {kl_coefficient: 0.01}
    global_batch: 64
    microbatch: 8
    optimizer: {lr: 1.0e-2, schedule: constant}
    evaluate: {every_steps: 10, max_tokens: 2000}
    stop: {max_steps: 10}
  - name: rloo
    objective: rloo
    from: sft@best
    data: {sources: [{path: prompts.jsonl}], held_out: 0.05}
    rewards: [{type: length, target: 12}]
    rollout: {prompts: 8, samples: 4, max_tokens: 12, evaluation_prompts: 20}
    global_batch: 32
    microbatch: 4
    optimizer: {lr: 1.0e-3}
    evaluate: {every_steps: 5, max_tokens: 2000}
    stop: {max_steps: 5}
  - name: dpo
    objective: dpo
    from: sft@best
    reference: pretrain@last
    data: {sources: [{path: pairs.jsonl}], held_out: 0.05}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-3}
    evaluate: {every_steps: 5, max_tokens: 500}
    stop: {max_steps: 5}
)";

class Phases : public ::testing::Test {
 protected:
  Phases() {
    // Whole, the data would take longer to prepare than to train on.
    const std::string make = absl::StrCat(MILLRACE_SOURCE_DIR, "/examples/assistant/make-data ", folder_ / "all");
    EXPECT_EQ(std::system(make.c_str()), 0);
    for (const char* name : {"text.txt", "sft.jsonl", "pairs.jsonl", "prompts.jsonl"}) {
      std::ifstream all(absl::StrCat(folder_ / "all", "/", name));
      std::ofstream some(folder_ / name);
      std::string line;
      for (int i = 0; i < 1500 && std::getline(all, line); ++i) some << line << "\n";
    }
  }

  struct Result {
    std::string digest;
    std::vector<v1::EvaluationEvent> evaluations;
    std::vector<std::string> notes;
    std::map<std::string, std::string> digests;  // of checkpoints, by phase and step
    std::string checkpoints;                     // their folder
    std::vector<v1::StepEvent> steps;
  };
  Result Train(Cluster* cluster, const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    const std::string file = folder_ / "job.yaml";
    std::ofstream(file) << yaml;
    const std::string job = cluster->Submit(file, overrides);
    cluster->AwaitSuccess(job);
    Result result;
    result.digest = cluster->LastDigest(job);
    result.checkpoints = absl::StrCat(cluster->directory(), "/jobs/", job, "/checkpoints");
    const absl::Status read = cluster->client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
      if (event.has_evaluation()) result.evaluations.push_back(event.evaluation());
      if (event.has_checkpoint()) {
        const v1::CheckpointEvent& checkpoint = event.checkpoint();
        result.digests[absl::StrCat(checkpoint.phase(), "-", checkpoint.step())] = checkpoint.digest();
      }
      if (event.has_step()) result.steps.push_back(event.step());
      if (event.has_log()) result.notes.push_back(event.log().text());
      return true;
    });
    EXPECT_OK(read);
    return result;
  }
  // The same job on a small and on a large cluster; returns the latter's result.
  Result TrainOnTwo(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    Cluster one({.workers = 1, .shards = 1});
    const Result first = Train(&one, yaml, overrides);
    // Of different processors, where this one can stand in for several.
    Cluster three({.workers = 3, .shards = 2, .max_isas = InstructionSets()});
    Result second = Train(&three, yaml, overrides);
    EXPECT_EQ(first.digest, second.digest);
    EXPECT_EQ(first.digests, second.digests);
    last_ = std::make_unique<Tensors>(second.checkpoints);
    return second;
  }
  // Weights of two checkpoints, read while the cluster's folder is there.
  struct Tensors {
    explicit Tensors(const std::string& checkpoints)
        : before(Read(checkpoints + "/pretrain-20")), after(Read(checkpoints + "/sft-20")) {}
    static std::map<std::string, std::string> Read(const std::string& folder) {
      std::map<std::string, std::string> tensors;
      const auto file = SafetensorsFile::Open(folder + "/model.safetensors");
      EXPECT_OK(file);
      if (!file.ok()) return tensors;
      for (const SafetensorsEntry& entry : (*file)->header().tensors) {
        tensors[entry.name] = std::string((*file)->bytes(entry));
      }
      return tensors;
    }
    std::map<std::string, std::string> before, after;
  };
  std::set<std::string> Changed() const {
    std::set<std::string> names;
    for (const auto& [name, bytes] : last_->before) {
      if (last_->after.at(name) != bytes) names.insert(name);
    }
    return names;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Tensors> last_;
};

TEST_F(Phases, FineTuningLearnsAnswersAndTellsWhatIsForgotten) {
  const Result result = TrainOnTwo(kJob);
  std::vector<double> sft, retained;
  for (const v1::EvaluationEvent& evaluation : result.evaluations) {
    EXPECT_EQ(evaluation.statistics().contains("retained_loss"), evaluation.phase() == "sft");
    if (evaluation.phase() != "sft") continue;
    sft.push_back(evaluation.loss());
    retained.push_back(evaluation.statistics().at("retained_loss"));
  }
  ASSERT_EQ(sft.size(), 2u);
  EXPECT_LT(sft[1], sft[0]);
  // In these steps of a small model what was learnt of the text goes.
  EXPECT_GT(retained[1], result.evaluations[0].loss());
  EXPECT_THAT(result.notes, Contains("phase sft starts from checkpoint pretrain-20"));
  EXPECT_EQ(Changed().size(), last_->before.size());
}

TEST_F(Phases, ReplayHelpsAgainstForgetting) {
  const std::vector<std::string> more = {"phases.1.stop.max_steps=20"};
  Cluster cluster({});
  const double without = Train(&cluster, kJob, more).evaluations.back().statistics().at("retained_loss");
  const double with =
      Train(&cluster, kJob, {more[0], "phases.1.replay=0.5"}).evaluations.back().statistics().at("retained_loss");
  EXPECT_LT(with, without);
}

TEST_F(Phases, FrozenTensorsStayAndTheOthersKeepTheirBits) {
  TrainOnTwo(kJob, {"phases.1.trainable.freeze=['transformer.wte.*', 'transformer.h.0.*']",
                    "phases.1.trainable.learning_rates=[{pattern: '*.bias', multiplier: 2}]"});
  const std::set<std::string> changed = Changed();
  EXPECT_THAT(changed, Contains("transformer.h.1.mlp.c_fc.weight"));
  EXPECT_THAT(changed, Contains("transformer.wpe.weight"));
  for (const std::string& name : changed) {
    EXPECT_FALSE(absl::StartsWith(name, "transformer.wte") || absl::StartsWith(name, "transformer.h.0.")) << name;
  }
}

TEST_F(Phases, TheLastLayersAlone) {
  TrainOnTwo(kJob, {"phases.1.trainable.last_layers=1", "phases.1.optimizer.type=muon"});
  for (const std::string& name : Changed()) {
    EXPECT_TRUE(absl::StartsWith(name, "transformer.h.1.") || absl::StartsWith(name, "transformer.ln_f")) << name;
  }
  EXPECT_THAT(Changed(), Contains("transformer.ln_f.weight"));
}

TEST_F(Phases, AWorkerKilledWhileFineTuningChangesNothing) {
  Cluster calm({});
  const std::string digest = Train(&calm, kJob, {"phases.1.stop.max_steps=200"}).digest;
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string file = folder_ / "job.yaml";
  const std::string job = cluster.Submit(file, {"phases.1.stop.max_steps=200"});
  cluster.Await(job, "some steps of sft", [](const v1::Job& it) { return it.phase() == "sft" && it.step() > 5; });
  cluster.worker(0).Kill();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), digest);
}

// ---- AdaLoRA ----

constexpr char kAdaLora[] =
    "phases.1.adapter={type: adalora, rank: 4, target_rank: 2, warmup_steps: 2, final_steps: 6, allocate_every: 2}";

// The adapter's singular values that are not zero, and all.
std::pair<size_t, size_t> SingularValues(const std::string& checkpoint) {
  const auto file = SafetensorsFile::Open(checkpoint + "/adapter_model.safetensors");
  EXPECT_OK(file);
  std::pair<size_t, size_t> counted = {0, 0};
  for (const SafetensorsEntry& entry : (*file)->header().tensors) {
    if (!absl::EndsWith(entry.name, "lora_E")) continue;
    std::vector<float> values((*file)->bytes(entry).size() / sizeof(float));
    std::memcpy(values.data(), (*file)->bytes(entry).data(), values.size() * sizeof(float));
    for (const float value : values) counted.first += value != 0.0f ? 1 : 0;
    counted.second += values.size();
  }
  return counted;
}

TEST_F(Phases, AdaLoraPrunesTheSameOnAnyCluster) {
  Cluster one({.workers = 1, .shards = 1});
  const Result first = Train(&one, kJob, {kAdaLora});
  Cluster three({.workers = 3, .shards = 2, .max_isas = InstructionSets()});
  const Result second = Train(&three, kJob, {kAdaLora});
  EXPECT_EQ(first.digests, second.digests);
  EXPECT_EQ(SingularValues(second.checkpoints + "/sft-20"), std::pair(size_t{4}, size_t{8}));
  const auto& last = second.steps.back().statistics();
  EXPECT_EQ(last.at("rank"), 2);
  // Random matrices of deviation 0.02 are far from orthogonal ones, and nearer in the end.
  EXPECT_GT(last.at("orthogonality"), 0);
  double before = 0;
  for (const v1::StepEvent& step : second.steps) {
    if (step.phase() == "sft" && before == 0) before = step.statistics().at("orthogonality");
  }
  EXPECT_LT(last.at("orthogonality"), before);
}

// A step that descends on hardly anything else shows how often it counts.
TEST_F(Phases, OrthogonalityCountsOnceHoweverAStepIsCut) {
  Cluster cluster({});
  std::vector<double> after;
  for (const char* const unit : {"1", "4"}) {
    const Result result = Train(&cluster, kJob,
                                {kAdaLora, "phases.1.adapter.orthogonality=400", "phases.0.stop.max_steps=5",
                                 "phases.1.optimizer={type: sgd, lr: 1.0e-3, schedule: constant, clip_norm: 0}",
                                 absl::StrCat("phases.1.unit_microbatches=", unit)});
    after.push_back(result.steps.back().statistics().at("orthogonality"));
  }
  EXPECT_NEAR(after[0], after[1], 1e-2);
  EXPECT_LT(after[0], 1.8);
  EXPECT_GT(after[0], 0.2);
}

TEST_F(Phases, ProcessesKilledWhileAdaLoraPrunesChangeNothing) {
  const std::vector<std::string> longer = {kAdaLora, "phases.1.adapter.final_steps=60", "phases.1.stop.max_steps=200"};
  Cluster calm({});
  const Result wanted = Train(&calm, kJob, longer);
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(folder_ / "job.yaml", longer);
  const auto await = [&](uint64_t step) {
    cluster.Await(job, "some steps of sft", [&](const v1::Job& it) { return it.phase() == "sft" && it.step() > step; });
  };
  await(15);
  cluster.worker(0).Kill();
  await(35);
  cluster.shard(0).Kill();
  cluster.shard(0).Restart();
  // Once more where what is kept does not change any more: it follows from the checkpoint's state.
  await(155);
  cluster.shard(1).Kill();
  cluster.shard(1).Restart();
  cluster.AwaitSuccess(job);
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = cluster.client().ListCheckpoints(job);
  ASSERT_OK(checkpoints);
  EXPECT_EQ(checkpoints->back().digest(), wanted.digests.at("sft-200"));
  EXPECT_EQ(SingularValues(cluster.Checkpoint(job, "last")), std::pair(size_t{4}, size_t{8}));
}

TEST_F(Phases, AlignmentIsTheSameOnAnyCluster) {
  const Result result = TrainOnTwo(absl::StrCat(kJob, kAligned + 1));
  std::map<std::string, std::vector<v1::EvaluationEvent>> evaluations;
  for (const v1::EvaluationEvent& evaluation : result.evaluations)
    evaluations[evaluation.phase()].push_back(evaluation);
  for (const char* name : {"accuracy", "margin", "confidence"}) {
    EXPECT_TRUE(evaluations["reward"].back().statistics().contains(name)) << name;
  }
  EXPECT_FALSE(evaluations["reward"].back().statistics().contains("retained_loss"));
  for (const char* phase : {"ppo", "grpo", "rloo"}) {
    const std::vector<v1::EvaluationEvent>& all = evaluations[phase];
    ASSERT_GE(all.size(), 2u) << phase;
    // Before it learns the policy is its reference, to the bit.
    EXPECT_EQ(all[0].step(), 0u);
    EXPECT_EQ(all[0].statistics().at("kl"), 0) << phase;
    EXPECT_NE(all.back().statistics().at("kl"), 0) << phase;
    EXPECT_EQ(all[0].loss(), -all[0].statistics().at("reward"));
    EXPECT_TRUE(all[0].statistics().contains("retained_loss"));
  }
  EXPECT_TRUE(evaluations["ppo"][0].statistics().contains("reward_answer"));
  EXPECT_GT(evaluations["grpo"].back().statistics().at("reward"), evaluations["grpo"][0].statistics().at("reward"));
  EXPECT_GT(evaluations["dpo"].back().statistics().at("accuracy"), 0.5);
  EXPECT_THAT(result.notes, AllOf(Contains("reward0/ of phase ppo starts from checkpoint reward-10"),
                                  Contains("value/ of phase ppo starts from checkpoint reward-10"),
                                  Contains("reference/ of phase dpo starts from checkpoint pretrain-20")));
}

TEST_F(Phases, ProcessesKilledWhileAnswersAreLearntFromChangeNothing) {
  std::string job_text = absl::StrCat(kJob, kAligned + 1);
  job_text.resize(job_text.find("  - name: grpo"));
  const std::vector<std::string> longer = {"phases.3.stop.max_steps=40", "phases.3.checkpoint.every_steps=8"};
  Cluster calm({});
  const Result wanted = Train(&calm, job_text, longer);
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(folder_ / "job.yaml", longer);
  cluster.Await(job, "some steps of ppo", [](const v1::Job& it) { return it.phase() == "ppo" && it.step() > 9; });
  cluster.worker(0).Kill();
  cluster.Await(job, "more steps of ppo", [](const v1::Job& it) { return it.phase() == "ppo" && it.step() > 17; });
  // The value model and the adapted cost of divergence come back with the checkpoint.
  cluster.shard(0).Kill();
  cluster.shard(0).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), wanted.digest);
}

TEST_F(Phases, BaselinesAreTrainedAndUsedLikeTransformersButForExports) {
  for (const char* family : {"family: lstm", "family: cnn, kernel_size: 5"}) {
    SCOPED_TRACE(family);
    const std::string yaml = absl::StrReplaceAll(kJob, {{"family: gpt2", family}, {" heads: 2,", ""}});
    Cluster one({.workers = 1, .shards = 1});
    const Result alone = Train(&one, yaml);
    Cluster three({.workers = 3, .shards = 2, .max_isas = InstructionSets()});
    EXPECT_EQ(Train(&three, yaml).digests, alone.digests);
    std::vector<double> losses;
    for (const v1::EvaluationEvent& evaluation : alone.evaluations) {
      if (evaluation.phase() == "sft") losses.push_back(evaluation.loss());
    }
    ASSERT_EQ(losses.size(), 2u);
    EXPECT_LT(losses[1], losses[0]);

    const std::string model = alone.checkpoints + "/best";
    const Outcome scored = RunMillrace({"score", "--model", model, "--text", "sort 2 1"});
    EXPECT_TRUE(scored.ending.well()) << scored.out;
    const Outcome made = RunMillrace({"generate", "--model", model, "--prompt", "sort", "--max-tokens", "8"});
    EXPECT_TRUE(made.ending.well()) << made.out;
    EXPECT_THAT(RunMillrace({"export", "--model", model, "--format", "hf", "--out", folder_ / "hf"}).out,
                HasSubstr("Hugging Face has no class for the family"));
    EXPECT_THAT(RunMillrace({"export", "--model", model, "--format", "gguf", "--out", folder_ / "gguf"}).out,
                HasSubstr("llama.cpp has no architecture for the family"));
  }
}

// The loss is a mean over the tokens of the whole step, however it is cut.
TEST_F(Phases, HowAStepIsCutChangesNoLoss) {
  Cluster cluster({.workers = 2});
  const std::vector<std::string> short_one = {"phases.0.stop.max_steps=5", "phases.1.stop.max_steps=10",
                                              "phases.1.optimizer.gradient_bits=32"};
  const auto loss = [&](const std::string& microbatch, const std::string& unit) {
    std::vector<std::string> overrides = short_one;
    overrides.push_back("phases.1.microbatch=" + microbatch);
    overrides.push_back("phases.1.unit_microbatches=" + unit);
    overrides.push_back("phases.1.chat.packing=false");
    return Train(&cluster, kJob, overrides).evaluations.back().loss();
  };
  const double wanted = loss("8", "1");
  EXPECT_NEAR(loss("1", "1"), wanted, 1e-4);
  EXPECT_NEAR(loss("2", "2"), wanted, 1e-4);
}

TEST_F(Phases, BadExamplesAreLeftOutCountedAndTold) {
  std::ofstream(folder_ / "sft.jsonl", std::ios::app)
      << "{\"prompt\": \"sort 1 2\", \"response\": \n"
      << "{\"prompt\": \"sort 1 2\", \"response\": \"\"}\n"
      << "{\"prompt\": \"" << std::string(400, 'q') << "\", \"response\": \"1\"}\n"
      << "{\"prompt\": \"sort\", \"response\": \"" << std::string(400, 'q') << "\"}\n";
  std::ofstream(folder_ / "pairs.jsonl", std::ios::app)
      << "{\"prompt\": \"sort 1 2\", \"chosen\": \"1 2\", \"rejected\": \"1 2\"}\n";
  std::string job_text = absl::StrCat(kJob, kAligned + 1);
  job_text.resize(job_text.find("  - name: ppo"));
  std::ofstream(folder_ / "job.yaml") << job_text;
  Cluster cluster({});
  const std::string job = cluster.Submit(folder_ / "job.yaml");
  cluster.AwaitSuccess(job);
  std::map<std::string, v1::DataEvent> data;
  ASSERT_OK(cluster.client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
    if (event.has_data()) data[event.data().phase()] = event.data();
    return true;
  }));
  EXPECT_EQ(data["sft"].skipped(), 3u);
  EXPECT_EQ(data["sft"].truncated(), 1u);
  EXPECT_THAT(data["sft"].skips(), ElementsAre(AllOf(HasSubstr("sft.jsonl:1501: "), HasSubstr("JSON")),
                                               AllOf(HasSubstr("sft.jsonl:1502: "), HasSubstr("response")),
                                               AllOf(HasSubstr("sft.jsonl:1503: "), HasSubstr("context"))));
  EXPECT_EQ(data["reward"].skipped(), 1u);
  EXPECT_THAT(data["reward"].skips(), ElementsAre(HasSubstr("pairs.jsonl:1501: ")));
}

TEST_F(Phases, WhatIsWrongWithALaterPhaseIsToldBeforeTheFirstStep) {
  std::ofstream(folder_ / "job.yaml") << absl::StrCat(kJob, kAligned + 1);
  Cluster cluster({});
  const auto failure = [&](const std::string& override_text) {
    const std::string job = cluster.Submit(folder_ / "job.yaml", {override_text});
    const std::string error = cluster.AwaitFailure(job).error();
    EXPECT_OK(cluster.client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
      EXPECT_FALSE(event.has_step()) << error;
      return true;
    }));
    return error;
  };
  EXPECT_THAT(failure("phases.3.data.sources.0.path=none.jsonl"),
              AllOf(HasSubstr("phase ppo"), HasSubstr("none.jsonl")));
  EXPECT_THAT(failure("phases.1.chat.template=qwen"),
              AllOf(HasSubstr("phase sft"), HasSubstr("chat.template is 'qwen', which is neither one of")));
  EXPECT_THAT(failure("phases.6.data.sources.0.path=sft.jsonl"), AllOf(HasSubstr("phase dpo"), HasSubstr("chosen")));
  EXPECT_THAT(failure("phases.1.chat.template=chatml"), HasSubstr("<|im_end|>"));
}

// A model is asked as it was taught, wherever it goes; and a job may begin with it, without text of its own.
TEST_F(Phases, AModelTakesItsTemplateAlongAndAJobMayBeginWithIt) {
  Cluster cluster({});
  const std::vector<std::string> chatml = {"tokenizer.special_tokens=['<|im_start|>', '<|im_end|>']",
                                           "phases.1.chat.template=chatml"};
  const Result result = Train(&cluster, kJob, chatml);
  const std::string model = result.checkpoints + "/sft-20", exported = folder_ / "exported";
  const auto ask = [](const std::string& folder) {
    const Outcome outcome = RunMillrace({"generate", "--model", folder, "--chat", "sort 3 1 2", "--max-tokens", "8"});
    EXPECT_TRUE(outcome.ending.well()) << outcome.out;
    return outcome.out;
  };
  ASSERT_TRUE(RunMillrace({"export", "--model", model, "--out", exported}).ending.well());
  EXPECT_EQ(ask(model), ask(exported));
  const Outcome untaught = RunMillrace({"generate", "--model", result.checkpoints + "/pretrain-20", "--chat", "sort"});
  EXPECT_EQ(untaught.ending.status, 1);
  EXPECT_THAT(untaught.out, HasSubstr("--chat needs a model that learnt from conversations"));

  std::string more = kJob;
  more.erase(more.find("data: "), more.find("tokenizer:") - more.find("data: "));
  more.replace(more.find("tokenizer: {type: bpe, vocab_size: 280}"), 39,
               absl::StrCat("tokenizer: {path: ", exported, "}"));
  more.erase(more.find("  - name: pretrain"), more.find("  - name: sft") - more.find("  - name: pretrain"));
  const Result second = Train(&cluster, more, {"phases.0.from=" + exported, "phases.0.chat.template=chatml"});
  EXPECT_THAT(second.notes, Contains("phase sft starts from " + exported));
  EXPECT_LT(second.evaluations.back().loss(), result.evaluations.back().loss());
  EXPECT_FALSE(second.evaluations.back().statistics().contains("retained_loss"));
}

// People compare the answers of two phases; the coordinator is killed while they do.
TEST_F(Phases, PeopleCompareAnswersAndARewardModelLearnsFromThem) {
  std::ofstream(folder_ / "job.yaml") << absl::StrCat(kJob, R"(
  - name: compare
    objective: compare
    compare: {from: [sft@best, pretrain@best], title: "Which one is right?"}
    data: {sources: [{path: prompts.jsonl}]}
    rollout: {prompts: 24, max_tokens: 12}
  - name: reward
    objective: reward
    data: {sources: [{path: compare@ratings}], held_out: 0.2}
    global_batch: 4
    evaluate: {every_steps: 4}
    stop: {max_steps: 4}
)" + 1);
  Cluster cluster({.page = true});
  const std::string job = cluster.Submit(folder_ / "job.yaml");
  cluster.Await(job, "pairs to compare", [](const v1::Job& it) { return it.phase() == "compare"; });
  const auto set = [&] {
    for (;;) {
      const auto sets = client::RatingsClient(cluster.coordinator().address()).ListRatingSets();
      if (sets.ok() && sets->sets_size() == 1) return *sets;
      EXPECT_NE(cluster.Job(job).state(), v1::Job::FAILED) << cluster.Job(job).error();
    }
  };
  const v1::ListRatingSetsReply before = set();
  EXPECT_EQ(before.sets(0).id(), job + "/compare");
  EXPECT_EQ(before.sets(0).title(), "Which one is right?");
  const auto pairs = static_cast<int>(before.sets(0).pairs());
  EXPECT_LE(pairs, 24);
  ASSERT_GE(pairs, 16);
  const auto rate = [&](const std::string& page, int pair) {
    const char* const choice = pair == 3 ? "tie" : pair == 4 ? "skip" : "left";
    return Exchange(page, PostBytes("/api/v1/ratings/rate",
                                    absl::StrCat(R"({"set": ")", job, R"(/compare", "rater": "ann", "pair": )", pair,
                                                 R"(, "choice": ")", choice, R"("})")));
  };
  for (int pair = 0; pair < pairs / 2; ++pair) {
    EXPECT_THAT(rate(before.http_address(), pair), StartsWith("HTTP/1.1 200 "));
  }
  EXPECT_EQ(cluster.Job(job).phase(), "compare");
  cluster.coordinator().Kill();
  cluster.coordinator().Restart();
  const v1::ListRatingSetsReply after = set();
  EXPECT_EQ(after.sets(0).done(), static_cast<uint64_t>(pairs / 2));
  for (int pair = pairs / 2; pair < pairs; ++pair) {
    EXPECT_THAT(rate(after.http_address(), pair), StartsWith("HTTP/1.1 200 "));
  }
  cluster.AwaitSuccess(job);
  std::ifstream ratings(absl::StrCat(cluster.directory(), "/jobs/", job, "/ratings/compare.jsonl"));
  std::string line;
  int lines = 0, ties = 0;
  for (; std::getline(ratings, line); ++lines) {
    ties += absl::StrContains(line, R"("tie":true)") ? 1 : 0;
    // Which side is whose is another for every pair.
    EXPECT_THAT(line, AnyOf(HasSubstr(R"("source_chosen":"sft@best","source_rejected":"pretrain@best")"),
                            HasSubstr(R"("source_chosen":"pretrain@best","source_rejected":"sft@best")")));
    EXPECT_FALSE(absl::StrContains(line, "User:")) << "the template is no part of what was asked: " << line;
  }
  EXPECT_EQ(lines, pairs - 1);
  EXPECT_EQ(ties, 1);
  // What was said goes with the job.
  ASSERT_OK(cluster.client().DeleteJob(job));
  EXPECT_EQ(client::RatingsClient(cluster.coordinator().address()).ListRatingSets()->sets_size(), 0);
}

TEST_F(Phases, APatternOfNoTensorFailsTheJobWithItsName) {
  Cluster cluster({});
  const std::string file = folder_ / "job.yaml";
  std::ofstream(file) << kJob;
  const std::string job = cluster.Submit(file, {"phases.1.trainable.freeze=['transformer.wet.*']"});
  EXPECT_THAT(cluster.AwaitFailure(job).error(), AllOf(HasSubstr("trainable: no tensor is called 'transformer.wet.*'"),
                                                       HasSubstr("transformer.wte.weight")));
}

}  // namespace
}  // namespace millrace::testing
