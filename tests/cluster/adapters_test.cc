// Jobs that train adapters: every method through the same shards, with the same bits on any cluster.
#include <sys/stat.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/job_file.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

// The model of examples/tiny.yaml, trained for a moment.
constexpr char kPretrained[] = R"(
name: adapters
data: {sources: [{path: text.txt}], held_out: 0.1, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 384}
model: {family: gpt2, layers: 2, hidden_size: 32, heads: 2, context: 32, dropout: 0.1}
phases:
  - name: pretrain
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 20, max_tokens: 1000}
    stop: {max_steps: 20}
)";

// What follows a phase's name, of one that learns to continue other text.
constexpr char kMoreText[] = R"(
    data: {sources: [{path: other.txt}], held_out: 0.1, split: {order: file}}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 2.0e-2, weight_decay: 0}
    evaluate: {every_steps: 4, max_tokens: 1000}
    stop: {max_steps: 8}
)";

std::string Phase(const std::string& name, const std::string& adapter, const std::string& from = "pretrain@best") {
  return absl::StrCat("  - name: ", name, "\n    from: ", from, "\n",
                      adapter.empty() ? "" : absl::StrCat("    adapter: ", adapter, "\n"), kMoreText + 1);
}

// The methods, by the name of their phases.
const std::map<std::string, std::string>& Methods() {
  static const auto* methods = new std::map<std::string, std::string>{
      {"lora", "{type: lora, rank: 2, alpha: 4, dropout: 0.1, targets: [all-linear]}"},
      {"rslora", "{type: lora, rank: 4, rank_stabilized: true}"},
      {"dora", "{type: lora, rank: 2, dora: true}"},
      {"ia3", "{type: ia3}"},
      {"prompt", "{type: prompt_tuning, virtual_tokens: 4}"},
      {"prompt-of-text", "{type: prompt_tuning, virtual_tokens: 4, init_text: the mill}"},
      {"p-tuning", "{type: p_tuning, virtual_tokens: 4}"},
      {"prefix", "{type: prefix_tuning, virtual_tokens: 4, encoder_hidden_size: 8}"},
      {"p-tuning-v2", "{type: p_tuning_v2, virtual_tokens: 4}"},
      {"llama-adapter", "{type: llama_adapter, virtual_tokens: 4, layers: 1}"},
  };
  return *methods;
}

// Sizes of the tensors of a file of weights, by name.
std::map<std::string, uint64_t> Sizes(const std::string& path) {
  std::map<std::string, uint64_t> sizes;
  const auto file = SafetensorsFile::Open(path);
  EXPECT_OK(file);
  if (!file.ok()) return sizes;
  for (const SafetensorsEntry& entry : (*file)->header().tensors) {
    sizes[entry.name] = (*file)->bytes(entry).size() / sizeof(float);
  }
  return sizes;
}

uint64_t Parameters(const std::string& path) {
  uint64_t sum = 0;
  for (const auto& [name, size] : Sizes(path)) sum += size;
  return sum;
}

ino_t FileNumber(const std::string& path) {
  struct stat status = {};
  EXPECT_EQ(stat(path.c_str(), &status), 0) << path;
  return status.st_ino;
}

class Adapters : public ::testing::Test {
 protected:
  Adapters() {
    // The tale of tiny.txt, and a language of other words; conversations and preferences about them.
    std::ifstream tiny(MILLRACE_SOURCE_DIR "/examples/tiny.txt");
    std::ofstream text(folder_ / "text.txt"), other(folder_ / "other.txt"), sft(folder_ / "sft.jsonl"),
        pairs(folder_ / "pairs.jsonl");
    std::string line;
    for (int i = 0; i < 300 && std::getline(tiny, line); ++i) text << line << "\n";
    for (int i = 0; i < 400; ++i) {
      const int a = i % 7, b = i * 3 % 11;
      other << "Sack " << a << " weighs " << b << ", and sack " << b << " weighs " << a << ".\n";
      sft << R"({"prompt": "Sack )" << a << R"(?", "response": ")" << a << R"("})"
          << "\n";
      pairs << R"({"prompt": "Sack )" << a << R"(?", "chosen": ")" << a << R"(", "rejected": "no )" << b << R"("})"
            << "\n";
    }
  }

  std::string Write(const std::string& yaml) {
    std::ofstream(folder_ / "job.yaml") << yaml;
    return folder_ / "job.yaml";
  }

  struct Result {
    std::string job;
    std::string checkpoints;                                              // their folder
    std::map<std::string, std::vector<v1::EvaluationEvent>> evaluations;  // by phase
    std::map<std::string, std::string> digests;                           // of checkpoints, by phase and step
    std::vector<std::string> notes;

    std::string File(const std::string& checkpoint, const std::string& name) const {
      return absl::StrCat(checkpoints, "/", checkpoint, "/", name);
    }
  };
  Result Train(Cluster* cluster, const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    const std::string job = cluster->Submit(Write(yaml), overrides);
    cluster->AwaitSuccess(job);
    return Read(cluster, job);
  }
  static Result Read(Cluster* cluster, const std::string& job) {
    Result result;
    result.job = job;
    result.checkpoints = absl::StrCat(cluster->directory(), "/jobs/", job, "/checkpoints");
    const absl::Status read = cluster->client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
      if (event.has_evaluation()) result.evaluations[event.evaluation().phase()].push_back(event.evaluation());
      if (event.has_checkpoint()) {
        const v1::CheckpointEvent& checkpoint = event.checkpoint();
        result.digests[absl::StrCat(checkpoint.phase(), "-", checkpoint.step())] = checkpoint.digest();
      }
      if (event.has_log()) result.notes.push_back(event.log().text());
      return true;
    });
    EXPECT_OK(read);
    return result;
  }
  // A job that must end in an error before anything of its last phase is learnt.
  std::string Failure(Cluster* cluster, const std::string& yaml) {
    return cluster->AwaitFailure(cluster->Submit(Write(yaml))).error();
  }

  TemporaryFolder folder_;
};

class EveryMethod : public Adapters, public ::testing::WithParamInterface<const char*> {};

TEST_P(EveryMethod, LearnsTheSameBitsOnAnyClusterAndLeavesTheModelAlone) {
  std::string yaml = kPretrained + 1;
  for (const auto& [name, adapter] : Methods()) absl::StrAppend(&yaml, Phase(name, adapter));
  std::vector<std::string> family = {absl::StrCat("model.family=", GetParam())};
  if (GetParam() == std::string("llama")) family.push_back("model.kv_heads=1");

  Cluster one({.workers = 1, .shards = 1});
  const Result result = Train(&one, yaml, family);
  const std::string model = result.File("pretrain-20", "model.safetensors");
  for (const auto& [name, adapter] : Methods()) {
    SCOPED_TRACE(name);
    const std::vector<v1::EvaluationEvent>& evaluations = result.evaluations.at(name);
    ASSERT_EQ(evaluations.size(), 2u);
    EXPECT_LT(evaluations[1].loss(), evaluations[0].loss());
    // The same file, not a copy.
    EXPECT_EQ(FileNumber(result.File(name + "-8", "model.safetensors")), FileNumber(model));
    EXPECT_LT(Parameters(result.File(name + "-8", "adapter_model.safetensors")), Parameters(model) / 4);
    EXPECT_EQ(TensorDigest(result.File(name + "-8", "")), result.digests.at(name + "-8"));
  }

  // Of different processors, where this one can stand in for several.
  Cluster three({.workers = 3, .shards = 2, .max_isas = InstructionSets()});
  EXPECT_EQ(Train(&three, yaml, family).digests, result.digests);
}

INSTANTIATE_TEST_SUITE_P(Families, EveryMethod, ::testing::Values("gpt2", "llama"),
                         [](const ::testing::TestParamInfo<const char*>& info) { return std::string(info.param); });

TEST_F(Adapters, ProcessesKilledChangeNothing) {
  const std::string yaml =
      absl::StrCat(kPretrained + 1, Phase("dora", "{type: lora, rank: 2, dora: true, dropout: 0.1}"));
  const std::vector<std::string> longer = {"phases.1.stop.max_steps=200", "phases.1.evaluate.every_steps=20"};
  Cluster calm({});
  Train(&calm, yaml, longer);
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(folder_ / "job.yaml", longer);
  cluster.Await(job, "some steps", [](const v1::Job& it) { return it.phase() == "dora" && it.step() > 5; });
  cluster.worker(0).Kill();
  cluster.Await(job, "a checkpoint", [](const v1::Job& it) { return it.phase() == "dora" && it.step() > 45; });
  cluster.shard(0).Kill();
  cluster.shard(0).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), calm.LastDigest(job));
}

TEST_F(Adapters, APhaseGoesOnWithTheAdapterOfAnother) {
  Cluster cluster({});
  const std::string adapter = "{type: lora, rank: 2, targets: [all-linear]}";
  // Nothing is learnt in the second phase, so that it shows where it began.
  const Result result =
      Train(&cluster, absl::StrCat(kPretrained + 1, Phase("lora", adapter), Phase("more", "", "lora@last")),
            {"phases.2.stop.max_steps=1", "phases.2.evaluate.every_steps=1", "phases.2.optimizer.lr=1e-12"});
  EXPECT_THAT(result.notes, Contains("phase more starts from checkpoint lora-8"));
  EXPECT_NEAR(result.evaluations.at("more").back().loss(), result.evaluations.at("lora").back().loss(), 1e-6);
  EXPECT_EQ(FileNumber(result.File("more-1", "model.safetensors")),
            FileNumber(result.File("pretrain-20", "model.safetensors")));

  // And so does another job, of a folder.
  const Result other = Train(&cluster, absl::StrCat(kPretrained + 1, Phase("more", adapter, result.File("lora-8", ""))),
                             {"phases.0.stop.max_steps=1", "phases.1.stop.max_steps=1",
                              "phases.1.evaluate.every_steps=1", "phases.1.optimizer.lr=1e-12"});
  EXPECT_NEAR(other.evaluations.at("more").back().loss(), result.evaluations.at("lora").back().loss(), 1e-6);
}

// What is learnt from preferences and rewards, and by reward models.
constexpr char kAligned[] = R"(
  - name: sft
    objective: sft
    adapter: {type: lora, rank: 2, targets: [all-linear]}
    data: {sources: [{path: sft.jsonl}], held_out: 0.1}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 8, max_tokens: 500}
    stop: {max_steps: 8}
  - name: dpo
    objective: dpo
    data: {sources: [{path: pairs.jsonl}], held_out: 0.1}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-12}
    evaluate: {every_steps: 1, max_tokens: 500}
    stop: {max_steps: 1}
  - name: reward
    objective: reward
    from: pretrain@best
    adapter: {type: ia3}
    data: {sources: [{path: pairs.jsonl}], held_out: 0.1}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 2.0e-2}
    evaluate: {every_steps: 8, max_tokens: 500}
    stop: {max_steps: 8}
  - name: grpo
    objective: grpo
    from: sft@best
    data: {sources: [{path: sft.jsonl}], held_out: 0.1}
    rewards: [{type: length, target: 4}]
    rollout: {prompts: 8, samples: 4, max_tokens: 8, evaluation_prompts: 10}
    policy: {kl_coefficient: 0.01}
    global_batch: 32
    microbatch: 8
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 4, max_tokens: 500}
    stop: {max_steps: 4}
  - name: ppo
    objective: ppo
    from: sft@best
    data: {sources: [{path: sft.jsonl}], held_out: 0.1}
    rewards: [{type: model, from: reward@best}]
    rollout: {prompts: 8, samples: 2, max_tokens: 8, evaluation_prompts: 10}
    global_batch: 16
    microbatch: 4
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 4, max_tokens: 500}
    stop: {max_steps: 4}
)";

TEST_F(Adapters, AlignmentTrainsAdaptersOfTheSameBitsOnAnyCluster) {
  const std::string yaml = absl::StrCat(kPretrained + 1, kAligned + 1);
  Cluster one({.workers = 1, .shards = 1});
  const Result result = Train(&one, yaml);
  const auto at = [&](const std::string& phase, const std::string& name, bool last) {
    const std::vector<v1::EvaluationEvent>& evaluations = result.evaluations.at(phase);
    return (last ? evaluations.back() : evaluations.front()).statistics().at(name);
  };
  // The reference is what the phase starts from, its adapter included.
  EXPECT_THAT(result.notes, Contains("phase dpo starts from checkpoint sft-8"));
  EXPECT_NEAR(at("dpo", "reward_chosen", true), 0, 1e-6);
  EXPECT_NEAR(at("dpo", "margin", true), 0, 1e-6);
  for (const char* const phase : {"grpo", "ppo"}) {
    EXPECT_EQ(at(phase, "kl", false), 0) << phase;
    EXPECT_NE(at(phase, "kl", true), 0) << phase;
  }
  EXPECT_GT(at("reward", "accuracy", true), 0.5);

  // A reward model's score goes with its adapter; a policy has none.
  EXPECT_THAT(Sizes(result.File("reward-8", "adapter_model.safetensors")),
              Contains(::testing::Pair("base_model.model.score.weight", 32)));
  EXPECT_EQ(Sizes(result.File("reward-8", "model.safetensors")).count("score.weight"), 0u);
  EXPECT_EQ(Sizes(result.File("ppo-4", "adapter_model.safetensors")).count("base_model.model.score.weight"), 0u);
  // The value model of PPO is another.
  EXPECT_THAT(Sizes(result.File("ppo-4", "adapter_value.safetensors")),
              Contains(::testing::Pair("base_model.model.score.weight", 32)));
  for (const char* const checkpoint : {"sft-8", "dpo-1", "reward-8", "grpo-4", "ppo-4"}) {
    EXPECT_EQ(FileNumber(result.File(checkpoint, "model.safetensors")),
              FileNumber(result.File("pretrain-20", "model.safetensors")))
        << checkpoint;
  }

  Cluster three({.workers = 3, .shards = 2, .max_isas = InstructionSets()});
  EXPECT_EQ(Train(&three, yaml).digests, result.digests);
}

TEST_F(Adapters, OnlyTheAdapterTravelsAndAReferenceAddsNoModel) {
  Cluster first({});
  const Result base = Train(&first, kPretrained + 1);
  const std::string folder = base.File("pretrain-20", "");
  const uint64_t model = Parameters(base.File("pretrain-20", "model.safetensors"));

  Cluster cluster({.workers = 1, .shards = 2, .metrics = true});
  std::string yaml = absl::StrCat(kPretrained + 1, Phase("lora", "{type: lora, rank: 2}", folder));
  // A job that begins with the folder.
  yaml.erase(yaml.find("  - name: pretrain"), yaml.find("  - name: lora") - yaml.find("  - name: pretrain"));
  yaml.replace(yaml.find("tokenizer: {type: bpe, vocab_size: 384}"), 39,
               absl::StrCat("tokenizer: {path: ", folder, "}"));
  const Result result = Train(&cluster, yaml);
  const uint64_t adapter = Parameters(result.File("lora-8", "adapter_model.safetensors"));
  ASSERT_GT(adapter, 0u);
  EXPECT_EQ(cluster.ShardMetric("millrace_shard_parameters"), model + adapter);
  // 8 steps of 4 units of 16 bits a value; the first ones, of which no scale is known, of 32.
  const double pushed = cluster.ShardMetric("millrace_shard_bytes_total{rpc=\"push\"}");
  EXPECT_GE(pushed, 8 * 4 * adapter * 2);
  EXPECT_LE(pushed, 8 * 4 * adapter * 4);
  EXPECT_LT(8 * 4 * adapter * 4, 4 * model * 2) << "less than the model's own gradients would be in a single step";
  // The model once; the adapter of each version, and of those that are evaluated.
  EXPECT_LE(cluster.ShardMetric("millrace_shard_bytes_total{rpc=\"pull\"}"), (model + 11 * adapter) * sizeof(float));

  const std::string pairs = R"(
  - name: dpo
    objective: dpo
    data: {sources: [{path: pairs.jsonl}], held_out: 0.1}
    global_batch: 8
    evaluate: {max_tokens: 500}
    stop: {max_steps: 2}
)";
  Train(&cluster, yaml + (pairs.c_str() + 1));
  EXPECT_EQ(cluster.ShardMetric("millrace_shard_parameters"), model + 2 * adapter);
}

TEST_F(Adapters, WhatDoesNotFitIsToldWithItsField) {
  const auto refused = [&](const std::string& phases) {
    const auto job = ReadJobFile(Write(absl::StrCat(kPretrained + 1, phases)), {});
    EXPECT_FALSE(job.ok());
    return std::string(job.status().message());
  };
  const std::string lora = "{type: lora, rank: 2}";
  EXPECT_THAT(refused(absl::StrCat(Phase("lora", lora), Phase("more", "{type: lora, rank: 4}", "lora@last"))),
              AllOf(HasSubstr("phases.2.adapter"), HasSubstr("differs from that of phase 'lora'")));
  EXPECT_THAT(refused(Phase("prompt", "{type: prompt_tuning, virtual_tokens: 31}")),
              AllOf(HasSubstr("phases.1.adapter.virtual_tokens"), HasSubstr("a context of 32")));
  EXPECT_THAT(refused(Phase("ia3", "{type: ia3, rank: 2}")), HasSubstr("phases.1.adapter.rank: only for lora"));
  std::string first = kPretrained + 1;
  first.replace(first.find("    global_batch"), 0, "    adapter: {type: ia3}\n");
  const auto job = ReadJobFile(Write(first), {});
  EXPECT_THAT(std::string(job.status().message()),
              AllOf(HasSubstr("phases.0.adapter"), HasSubstr("goes on a trained model")));

  Cluster cluster({});
  EXPECT_THAT(Failure(&cluster, absl::StrCat(kPretrained + 1, Phase("lora", "{type: lora, targets: [q_proj]}"))),
              AllOf(HasSubstr("phase lora"), HasSubstr("no linear layer is called 'q_proj'"), HasSubstr("c_attn")));
  const Result trained = Train(&cluster, absl::StrCat(kPretrained + 1, Phase("lora", lora)));
  const std::string folder = trained.File("lora-8", "");
  EXPECT_THAT(Failure(&cluster, absl::StrCat(kPretrained + 1, Phase("more", "{type: lora, rank: 4}", folder))),
              AllOf(HasSubstr("phase more"), HasSubstr("lora_A"), HasSubstr("[2, 32]"), HasSubstr("[4, 32]")));
  EXPECT_THAT(Failure(&cluster, absl::StrCat(kPretrained + 1, Phase("more", "", folder))),
              AllOf(HasSubstr("phase more"), HasSubstr("holds an adapter"), HasSubstr("say which one")));
}

}  // namespace
}  // namespace millrace::testing
