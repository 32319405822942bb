// What a model writes at evaluations: the same on any cluster and whatever happens to it, and what `millrace generate`
// writes with the same checkpoint.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cluster/tiny.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kSamples[] =
    R"(phases.0.evaluate.samples={prompts: ["The child", "", "At noon"], max_tokens: 20, temperature: 0.7, top_p: 0.9})";

std::string FileOf(const Cluster& cluster, const std::string& job) {
  std::ifstream stream(absl::StrCat(cluster.directory(), "/jobs/", job, "/samples.jsonl"));
  EXPECT_TRUE(stream.good()) << "there is no samples.jsonl";
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::vector<json> LinesOf(const Cluster& cluster, const std::string& job) {
  std::vector<json> lines;
  for (absl::string_view line : absl::StrSplit(FileOf(cluster, job), '\n', absl::SkipEmpty())) {
    lines.push_back(json::parse(line));
  }
  return lines;
}

// What the job's events tell, as samples.jsonl has it.
std::vector<json> EventsOf(Cluster& cluster, const std::string& job, std::vector<uint64_t>* evaluated) {
  std::vector<json> told;
  const absl::Status read = cluster.client().ReadEvents(job, 0, [&](const v1::JobEvent& event) {
    if (event.has_evaluation()) evaluated->push_back(event.evaluation().step());
    for (const v1::Sample& sample : event.samples().samples()) {
      told.push_back({{"phase", event.samples().phase()},
                      {"step", event.samples().step()},
                      {"prompt", sample.prompt()},
                      {"text", sample.text()},
                      {"tokens", sample.tokens()},
                      {"ended", sample.ended()}});
    }
    return true;
  });
  EXPECT_OK(read);
  return told;
}

// What `millrace generate` says with the last checkpoint.
std::string Generate(const Cluster& cluster, const std::string& job, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"generate", "--json", "--model", cluster.Checkpoint(job, "last")});
  const Outcome outcome = RunMillrace(arguments);
  const json said = json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(said.is_object()) << outcome.out;
  return said.is_object() ? said.at("text").get<std::string>() : "";
}

TEST(Samples, AreTheSameOnAnyClusterAndWhatGenerateWrites) {
  std::vector<std::string> files;
  for (const Cluster::Options& options :
       {Cluster::Options{.workers = 1, .shards = 1},
        Cluster::Options{.workers = 3, .shards = 2, .threads = 2, .max_isas = InstructionSets()}}) {
    Cluster cluster(options);
    const std::string job = cluster.Submit(kTinyJob, {kSamples, "model.precision=bf16"});
    cluster.AwaitSuccess(job);
    EXPECT_EQ(cluster.LastDigest(job), TinyDigest("bf16"));  // nothing is learnt otherwise because of them
    files.push_back(FileOf(cluster, job));

    const std::vector<json> lines = LinesOf(cluster, job);
    std::vector<uint64_t> evaluated;
    EXPECT_EQ(EventsOf(cluster, job, &evaluated), lines);
    EXPECT_THAT(evaluated, ElementsAre(20, 40, 60));
    ASSERT_EQ(lines.size(), 9u);
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_EQ(lines[i]["step"], 20 * (i / 3 + 1));
      EXPECT_EQ(lines[i]["phase"], "pretrain");
    }
    EXPECT_NE(lines[0]["text"], lines[6]["text"]);
    for (size_t i = 6; i < lines.size(); ++i) {
      const std::string prompt = lines[i]["prompt"];
      const std::string written =
          Generate(cluster, job,
                   {"--prompt", prompt, "--max-tokens", "20", "--temperature", "0.7", "--top-p", "0.9", "--seed", "1"});
      EXPECT_EQ(lines[i]["text"], written) << prompt;
      EXPECT_NE(written, "") << prompt;
    }
  }
  EXPECT_EQ(files[0], files[1]);
}

TEST(Samples, ComeOnceEachWhateverDies) {
  const std::vector<std::string> overrides = {kSamples, kLonger};
  std::string undisturbed;
  {
    Cluster cluster({});
    const std::string job = cluster.Submit(kTinyJob, overrides);
    cluster.AwaitSuccess(job);
    undisturbed = FileOf(cluster, job);
  }
  Cluster cluster({.workers = 2, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob, overrides);
  cluster.AwaitStep(job, 45);
  cluster.worker(0).Kill();
  cluster.AwaitStep(job, 90);
  cluster.shard(0).Kill();  // back to the last checkpoint, with another
  cluster.AddShard();
  cluster.AwaitStep(job, 150);
  cluster.KillAll();
  cluster.StartAll();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(FileOf(cluster, job), undisturbed);
  std::vector<uint64_t> evaluated;
  EXPECT_EQ(EventsOf(cluster, job, &evaluated), LinesOf(cluster, job));
  EXPECT_EQ(LinesOf(cluster, job).size(), 3 * evaluated.size());
  EXPECT_EQ(evaluated.size(), 20u);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest("long"));
}

TEST(Samples, OfConversationsAnswerWhatAUserSays) {
  TemporaryFolder folder;
  const std::string make = absl::StrCat(MILLRACE_SOURCE_DIR, "/examples/assistant/make-data ", folder / "");
  ASSERT_EQ(std::system(make.c_str()), 0);
  std::ofstream(folder / "job.yaml") << R"(
name: talk
data: {sources: [{path: text.txt}], held_out: 0.05, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 280}
model: {family: llama, layers: 1, hidden_size: 32, heads: 2, context: 48}
phases:
  - {name: pretrain, global_batch: 8, optimizer: {lr: 1.0e-2}, evaluate: {every_steps: 10, max_tokens: 500}, stop: {max_steps: 10}}
  - name: sft
    objective: sft
    data: {sources: [{path: sft.jsonl}], held_out: 0.01}
    adapter: {type: prompt_tuning, virtual_tokens: 4}
    global_batch: 8
    optimizer: {lr: 3.0e-3}
    evaluate: {every_steps: 10, max_tokens: 500, samples: {prompts: ["Who sang?"], max_tokens: 40, temperature: 0, seed: 7}}
    stop: {max_steps: 20}
)";
  Cluster cluster({});
  const std::string job = cluster.Submit(folder / "job.yaml");
  cluster.AwaitSuccess(job);
  const std::vector<json> lines = LinesOf(cluster, job);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["phase"], "sft");
  EXPECT_EQ(lines[1]["step"], 20);
  EXPECT_EQ(lines[1]["text"], Generate(cluster, job,
                                       {"--chat", "Who sang?", "--max-tokens",
                                        absl::StrCat(lines[1]["tokens"].get<int>()), "--temperature", "0"}));
}

TEST(Samples, ThatCannotBeAreRefusedBeforeAnythingIsTrained) {
  Cluster cluster({});
  // 40 of these are more than the context of 32 tokens, whatever they are made of.
  std::string long_prompt;
  for (int i = 0; i < 40; ++i) absl::StrAppend(&long_prompt, "0123456789");
  const std::string job =
      cluster.Submit(kTinyJob, {absl::StrCat("phases.0.evaluate.samples={prompts: [The, \"", long_prompt, "\"]}")});
  const v1::Job failed = cluster.AwaitFailure(job);
  EXPECT_THAT(failed.error(), HasSubstr("phase pretrain: evaluate.samples.prompts.1 has "));
  EXPECT_THAT(failed.error(), HasSubstr("tokens, which leaves no room in a context of 32"));
  EXPECT_EQ(failed.step(), 0u);
}

}  // namespace
}  // namespace millrace::testing
