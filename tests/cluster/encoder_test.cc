// Encoders from the job file to the commands: the same bits on any cluster, and what is learnt can be used.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kJob[] = "examples/tiny-bert.yaml";

std::vector<v1::EvaluationEvent> Evaluations(Cluster* cluster, const std::string& job) {
  std::vector<v1::EvaluationEvent> evaluations;
  const absl::Status read = cluster->client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
    if (event.has_evaluation()) evaluations.push_back(event.evaluation());
    return true;
  });
  EXPECT_OK(read);
  return evaluations;
}

// What `millrace ARGUMENTS` prints.
std::string Output(const std::vector<std::string>& arguments) {
  const Outcome outcome = RunMillrace(arguments);
  EXPECT_EQ(outcome.ending.status, 0) << outcome.out;
  return outcome.out;
}
std::string Refusal(const std::vector<std::string>& arguments) {
  const Outcome outcome = RunMillrace(arguments);
  EXPECT_EQ(outcome.ending.status, 1) << outcome.out;
  return outcome.out;
}

TEST(Encoders, TrainTheSameBitsOnAnyClusterAndHideTheSameInEveryEvaluation) {
  for (const std::string precision : {"f32", "bf16"}) {
    const std::vector<std::string> overrides = {"phases.0.stop.max_steps=30", "phases.0.evaluate.every_steps=10",
                                                "model.precision=" + precision};
    std::vector<std::string> digests;
    std::vector<std::vector<double>> losses;
    for (const Cluster::Options& options :
         {Cluster::Options{.workers = 1, .shards = 1},
          Cluster::Options{.workers = 3, .shards = 2, .threads = 2, .max_isas = InstructionSets()}}) {
      Cluster cluster(options);
      const std::string job = cluster.Submit(kJob, overrides);
      cluster.AwaitSuccess(job);
      digests.push_back(cluster.LastDigest(job));
      std::vector<double>& of_cluster = losses.emplace_back();
      for (const v1::EvaluationEvent& evaluation : Evaluations(&cluster, job)) {
        of_cluster.push_back(evaluation.loss());
        for (const auto& [name, value] :
             std::map<std::string, double>(evaluation.statistics().begin(), evaluation.statistics().end())) {
          of_cluster.push_back(value);
        }
      }
    }
    EXPECT_EQ(digests[0], digests[1]) << precision;
    EXPECT_EQ(losses[0].size(), 12u) << precision;  // three times the loss and three statistics
    EXPECT_EQ(losses[0], losses[1]) << precision;
  }
}

TEST(Encoders, AWorkerThatIsKilledChangesNoBit) {
  const std::vector<std::string> overrides = {"phases.0.stop.max_steps=120"};
  Cluster quiet({});
  const std::string expected = quiet.Submit(kJob, overrides);
  quiet.AwaitSuccess(expected);
  Cluster cluster({.workers = 2, .shards = 2, .lease_seconds = 2});
  const std::string job = cluster.Submit(kJob, overrides);
  cluster.AwaitStep(job, 40);
  cluster.worker(0).Kill();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), quiet.LastDigest(expected));
}

// Documents of one of four topics each: what is hidden is one of six words, and a piece from elsewhere is of another
// topic three times out of four.
void WriteTopics(const std::string& path) {
  const std::vector<std::vector<std::string>> topics = {{"sea", "ship", "sail", "wave", "fish", "shore"},
                                                        {"mill", "corn", "flour", "wheel", "sack", "stone"},
                                                        {"king", "crown", "sword", "throne", "court", "queen"},
                                                        {"wood", "tree", "leaf", "bird", "nest", "root"}};
  std::ofstream file(path);
  for (uint64_t document = 0; document < 1500; ++document) {
    const auto& topic = topics[Philox(1)(0, document)[0] % topics.size()];
    file << R"({"text": ")";
    for (uint64_t word = 0; word < 29; ++word) {
      file << (word == 0 ? "" : " ") << topic[Philox(2)(document, word)[0] % topic.size()];
    }
    file << "\"}\n";
  }
}

constexpr char kTopics[] = R"(
name: topics
data: {sources: [{path: topics.jsonl}], held_out: 0.1, clean: {dedup: none}}
tokenizer: {type: bpe, vocab_size: 330}
model: {family: bert, layers: 2, hidden_size: 32, heads: 2, context: 32}
phases:
  - name: pretrain
    objective: masked_lm
    global_batch: 16
    microbatch: 8
    optimizer: {type: muon, lr: 3.0e-3, schedule: wsd, decay_fraction: 0.5, warmup_steps: 20}
    evaluate: {every_steps: 100}
    stop: {max_steps: 300}
)";

TEST(Encoders, LearnWhatIsHiddenAndWhatFollowsAndServeTheCommands) {
  const TemporaryFolder folder;
  const std::string text = folder / "topics.jsonl", file = folder / "job.yaml";
  WriteTopics(text);
  std::ofstream(file) << kTopics;
  Cluster cluster({.workers = 2, .shards = 1});
  const std::string job = cluster.Submit(file);
  cluster.AwaitSuccess(job);
  const std::vector<v1::EvaluationEvent> evaluations = Evaluations(&cluster, job);
  ASSERT_FALSE(evaluations.empty());
  const auto& last = evaluations.back().statistics();
  // How often tokens occur gives some 3.4 nats. What is told of pairs is right in 7 of 8 at most.
  EXPECT_LT(last.at("masked_loss"), 2.5);
  EXPECT_GT(last.at("next_sentence_accuracy"), 0.8);
  EXPECT_EQ(evaluations.back().perplexity(), 0);  // that is of text which is continued

  const std::string model = cluster.Checkpoint(job, "last");
  const Json scores = Json::parse(Output({"eval", "--model", model, "--data", text, "--json"}));
  EXPECT_LT(scores["masked_loss"].get<double>(), 2.5);
  EXPECT_GT(scores["masked_accuracy"].get<double>(), 0.1);
  EXPECT_GT(scores["next_sentence_accuracy"].get<double>(), 0.8);
  EXPECT_GT(scores["sequences"].get<int>(), 1400);
  const Json single = Json::parse(Output({"eval", "--model", model, "--data", text, "--single", "--json"}));
  EXPECT_FALSE(single.contains("next_sentence_accuracy"));

  // A word is likelier among those of its topic than among others.
  const auto last_word = [&](const std::string& sentence) {
    const Json scored = Json::parse(Output({"score", "--model", model, "--text", sentence, "--json"}));
    EXPECT_EQ(scored["tokens"].back()["text"], " sea");
    EXPECT_EQ(scored["predictions"], scored["tokens"].size());
    return scored["tokens"].back()["log_probability"].get<double>();
  };
  EXPECT_GT(last_word("fish shore wave sail ship sea"), last_word("king sword crown queen king sea") + 1);
  const Json embedding = Json::parse(Output({"embed", "--model", model, "--text", "sea ship", "--json"}));
  EXPECT_EQ(embedding["embedding"].size(), 32u);

  // Hugging Face's layout, and back.
  const std::string out = folder / "hf", again = folder / "again";
  Output({"export", "--model", model, "--format", "hf", "--out", out});
  EXPECT_FALSE(std::filesystem::exists(out + "/generation_config.json"));
  Output({"import", "--from", out, "--out", again});
  EXPECT_EQ(Output({"eval", "--model", again, "--data", text, "--json"}),
            Output({"eval", "--model", model, "--data", text, "--json"}));

  // What an encoder cannot do.
  EXPECT_THAT(Refusal({"generate", "--model", model, "--prompt", "The"}), HasSubstr("is an encoder"));
  EXPECT_THAT(Refusal({"serve", "--model", model, "--port", "0"}), HasSubstr("is an encoder"));
  EXPECT_THAT(Refusal({"export", "--model", model, "--format", "gguf", "--out", folder / "model.gguf"}),
              HasSubstr("encoders are not written as GGUF"));
}

TEST(Encoders, GoOnFromAFolderAndWithoutPairs) {
  const TemporaryFolder folder;
  Cluster cluster({});
  const std::string first = cluster.Submit(kJob, {"phases.0.stop.max_steps=10"});
  cluster.AwaitSuccess(first);
  const std::string model = folder / "model";
  Output({"export", "--model", cluster.Checkpoint(first, "last"), "--format", "hf", "--out", model});
  const std::string second =
      cluster.Submit(kJob, {"phases.0.stop.max_steps=10", "phases.0.from=" + model, "tokenizer.path=" + model,
                            "phases.0.mask.next_sentence=false", "phases.0.evaluate.every_steps=10"});
  cluster.AwaitSuccess(second);
  const std::vector<v1::EvaluationEvent> evaluations = Evaluations(&cluster, second);
  ASSERT_FALSE(evaluations.empty());
  EXPECT_FALSE(evaluations.back().statistics().contains("next_sentence_accuracy"));
  EXPECT_NEAR(evaluations.back().statistics().at("masked_loss"), evaluations.back().loss(), 0.2);
  EXPECT_NE(cluster.LastDigest(first), cluster.LastDigest(second));
}

}  // namespace
}  // namespace millrace::testing
