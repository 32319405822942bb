// A real cluster watched by a real Prometheus with our configuration and rules: every metric of the table exists, every
// query of every panel finds something, and no alert complains. alerts_test.cc has the troubles.
#include "testing/cluster.h"

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "monitoring/prometheus.h"
#include "nlohmann/json.hpp"
#include "re2/re2.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::Contains;
using ::testing::Not;

// Phases of every kind that panels ask for: text, pairs, rewards.
constexpr char kJob[] = R"(
name: watched
data: {sources: [{path: text.txt}], held_out: 0.1, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 280}
model: {family: gpt2, layers: 2, hidden_size: 32, heads: 2, context: 48}
phases:
  - name: pretrain
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 1.0e-2}
    evaluate: {every_steps: 20, max_tokens: 2000}
    stop: {max_steps: 100}
  - name: reward
    objective: reward
    data: {sources: [{path: pairs.jsonl}], held_out: 0.1}
    global_batch: 8
    microbatch: 2
    optimizer: {lr: 3.0e-3}
    evaluate: {every_steps: 10, max_tokens: 500}
    stop: {max_steps: 20}
  - name: ppo
    objective: ppo
    from: pretrain@best
    data: {sources: [{path: prompts.jsonl}], held_out: 0.1}
    rewards: [{type: model, from: reward@best}]
    rollout: {prompts: 8, samples: 2, epochs: 2, max_tokens: 8, evaluation_prompts: 8}
    policy: {kl_target: 0.5}
    global_batch: 8
    microbatch: 4
    optimizer: {lr: 1.0e-3}
    evaluate: {every_steps: 4, max_tokens: 1000}
    stop: {max_steps: 16}
)";

void WriteData(const fs::path& folder) {
  std::string text, pairs, prompts;
  for (int i = 0; i < 400; ++i) {
    const int a = i * 7 % 10, b = i * 3 % 10;
    absl::StrAppend(&text, "Question: what is ", a, " and ", b, "? Answer: ", a + b, ".\n");
    absl::StrAppend(&pairs, R"({"prompt": "what is )", a, " and ", b, R"(?", "chosen": ")", a + b,
                    R"(", "rejected": ")", a + b + 1, "\"}\n");
    absl::StrAppend(&prompts, R"({"prompt": "what is )", a, " and ", b, " and ", i, "?\"}\n");
  }
  WriteText(folder / "text.txt", text);
  WriteText(folder / "pairs.jsonl", pairs);
  WriteText(folder / "prompts.jsonl", prompts);
  WriteText(folder / "job.yaml", kJob);
}

TEST(Monitoring, SeesAWorkingCluster) {
  const std::string program = FindPrometheus();
  if (program.empty()) GTEST_SKIP() << "SKIPPED: there is no prometheus; ./test fetches it";
  const TemporaryFolder folder;
  WriteData(folder.path());
  Cluster cluster({.workers = 2, .shards = 2, .lease_seconds = 2, .metrics = true});

  // Something to serve, and a call that ends badly.
  const std::string first = cluster.Submit(folder / "job.yaml", {"phases.0.stop.max_steps=20"});
  cluster.Await(first, "a checkpoint", [&](const v1::Job&) { return fs::exists(cluster.Checkpoint(first, "best")); });
  const Serving serving(cluster.Checkpoint(first, "best"), folder.path());
  Targets targets = TargetsOf(cluster);
  targets.serve = {serving.address()};
  Prometheus prometheus(folder.path() / "prometheus", targets);
  prometheus.AwaitTargets(6);
  const std::string job = cluster.Submit(folder / "job.yaml");
  EXPECT_FALSE(cluster.client().GetJob("no-such-job").ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(Exchange(serving.address(),
                         PostBytes("/v1/completions", R"({"model": "best", "prompt": "what is", "max_tokens": 8})",
                                   "Connection: close\r\n")),
                ::testing::HasSubstr("200"));
  }
  // One that never runs.
  EXPECT_OK(cluster.client().CancelJob(cluster.Submit(folder / "job.yaml")));
  cluster.AwaitSuccess(job);
  prometheus.Until("the count of a job that was cancelled in the queue", [&] {
    return !prometheus.Query(R"(millrace_jobs_finished_total{result="cancelled"} == 1)").empty();
  });
  const std::set<std::string> firing = prometheus.Firing();
  EXPECT_THAT(firing, Contains("MillraceWatchdog"));
  for (const char* alert : {"MillraceCoordinatorAbsent", "MillraceShardMissing", "MillraceNoWorkers",
                            "MillraceLossNotFinite", "MillraceJobFailed", "MillraceVersionSkew"}) {
    EXPECT_THAT(firing, Not(Contains(alert)));
  }

  // Their names are as Prometheus wants them, by its own word.
  const fs::path promtool = fs::path(program).parent_path() / "promtool";
  for (const char* role : {"coordinator", "shard", "worker"}) {
    const std::string answer =
        Exchange(cluster.metrics(role)[0], "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    WriteText(folder / "metrics.txt", answer.substr(answer.find("\r\n\r\n") + 4));
    const std::string check = absl::StrCat(promtool.string(), " check metrics < ", folder / "metrics.txt");
    EXPECT_EQ(std::system(check.c_str()), 0) << role;
  }

  // Every metric of the table exists.
  const std::string table = ReadText(fs::path(MILLRACE_SOURCE_DIR) / "docs/metrics.md");
  re2::StringPiece rest(table);
  std::string name, type;
  int metrics = 0;
  while (RE2::FindAndConsume(&rest, R"(\| `((?:millrace|process)_[a-z0-9_]+)` \| ([a-z]+) \|)", &name, &type)) {
    if (absl::StartsWith(name, "millrace_tls_")) continue;  // of clusters with certificates
    ++metrics;
    EXPECT_TRUE(prometheus.Found(type == "histogram" ? name + "_count" : name)) << name;
  }
  EXPECT_GT(metrics, 60);

  // What workers do is a part of what they can do.
  EXPECT_TRUE(prometheus.Found("instance:millrace_worker_utilisation:ratio5m > 0"));
  EXPECT_FALSE(prometheus.Found("instance:millrace_worker_utilisation:ratio5m > 1"));

  // Every query of every panel finds something in one of the phases.
  for (const auto& entry : fs::directory_iterator(fs::path(MILLRACE_SOURCE_DIR) / "deploy/grafana/dashboards")) {
    for (const json& panel : json::parse(ReadText(entry.path()))["panels"]) {
      if (panel["type"] == "row") continue;
      for (const json& target : panel["targets"]) {
        bool found = false;
        for (const char* phase : {"pretrain", "reward", "ppo"}) {
          found = found || prometheus.Found(absl::StrReplaceAll(
                               target["expr"].get<std::string>(),
                               {{"$train_job", job}, {"$phase", phase}, {"$__rate_interval", "2s"}}));
        }
        EXPECT_TRUE(found) << entry.path().stem() << ", " << panel["title"] << ": " << target["expr"];
      }
    }
  }

  // Every rule could be evaluated.
  for (const json& group :
       json::parse(prometheus.Get("/api/v1/rules")
                       .substr(prometheus.Get("/api/v1/rules").find("\r\n\r\n") + 4))["data"]["groups"]) {
    for (const json& rule : group["rules"]) EXPECT_EQ(rule["health"], "ok") << rule;
  }
}

}  // namespace
}  // namespace millrace::testing
