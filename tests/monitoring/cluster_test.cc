// A real cluster watched by a real Prometheus with our configuration and rules: every metric of the table exists, every
// query of every panel finds something, and alerts fire when there is trouble.
//
// Time is shortened: in a copy of deploy/prometheus a minute becomes 200 ms, as "Nm" and "Nh" of rules, and as "N *
// 60", "N * 3600", "N * 86400" where they are seconds; Prometheus scrapes and evaluates every 200 ms.
#include "testing/cluster.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "re2/re2.h"
#include "testing/http_exchange.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int kMinuteMs = 200;
constexpr absl::Duration kPatience = absl::Seconds(40);
constexpr absl::Duration kLook = absl::Milliseconds(100);

std::string Read(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << "cannot read " << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}
void Write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// Empty if there is none.
std::string FindPrometheus() {
  if (const fs::path unpacked = fs::path(PROMETHEUS_FOLDER) / "prometheus"; fs::exists(unpacked)) return unpacked;
  if (fs::exists("/usr/bin/prometheus")) return "/usr/bin/prometheus";
  return "";
}

// Rules whose durations are a fraction of themselves.
std::string Shortened(const std::string& rules) {
  std::string text;
  re2::StringPiece rest(rules);
  static const RE2 duration(R"((?s)(.*?)(?:\b(\d+)([mh])\b|\* (60|3600|86400)\b))");
  std::string before, count, unit, seconds;
  while (RE2::Consume(&rest, duration, &before, &count, &unit, &seconds)) {
    absl::StrAppend(&text, before);
    if (seconds.empty()) {
      absl::StrAppend(&text, std::stol(count) * (unit == "h" ? 60 : 1) * kMinuteMs, "ms");
    } else {
      absl::StrAppend(&text, "* ", std::stod(seconds) / 60 * kMinuteMs / 1000);
    }
  }
  return absl::StrCat(text, std::string(rest.data(), rest.size()));
}

std::string Encoded(const std::string& text) {
  std::string encoded;
  for (const char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) {
      encoded.push_back(c);
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(static_cast<uint8_t>(c), absl::kZeroPad2));
    }
  }
  return encoded;
}

std::string Seconds(absl::Time time) {
  return absl::StrFormat("%.3f", absl::ToDoubleSeconds(time - absl::UnixEpoch()));
}

class Prometheus {
 public:
  Prometheus(const std::string& program, const fs::path& folder, const Cluster& cluster, const std::string& serve)
      : folder_(folder), begun_(absl::Now()) {
    fs::copy(fs::path(MILLRACE_SOURCE_DIR) / "deploy/prometheus", folder_, fs::copy_options::recursive);
    const auto targets = [this](const std::string& file, const std::vector<std::string>& addresses) {
      Write(folder_ / "targets" / file, absl::StrCat("- targets: [\"", absl::StrJoin(addresses, "\", \""), "\"]\n"));
    };
    targets("coordinator.yml", cluster.metrics("coordinator"));
    targets("shards.yml", cluster.metrics("shard"));
    targets("workers.yml", cluster.metrics("worker"));
    targets("serve.yml", {serve});
    for (const char* rules : {"rules/alerts.yml", "rules/recording.yml"}) {
      Write(folder_ / rules, Shortened(Read(folder_ / rules)));
    }
    const std::string configuration = Read(folder_ / "prometheus.yml");
    Write(folder_ / "prometheus.yml", absl::StrReplaceAll(configuration, {{"15s", "200ms"}}));

    ChildProcess::Options options;
    options.arguments = {program, absl::StrCat("--config.file=", (folder_ / "prometheus.yml").string()),
                         absl::StrCat("--storage.tsdb.path=", (folder_ / "data").string()),
                         "--web.listen-address=127.0.0.1:0"};
    options.directory = folder_;
    options.log_file = folder_ / "log";
    auto process = ChildProcess::Start(options);
    EXPECT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
    // It says where it listens.
    Until("Prometheus' address", [this] {
      const std::string log = Read(folder_ / "log");
      return RE2::PartialMatch(log, R"(msg="Listening on" address=(127\.0\.0\.1:\d+))", &address_);
    });
    Until("Prometheus' readiness", [this] { return absl::StrContains(Get("/-/ready"), "200 OK"); });
  }

  // Result of an instant query.
  json Query(const std::string& query) { return Ask(absl::StrCat("/api/v1/query?query=", Encoded(query))); }
  // Of a range query over all the time since the start: whether there was anything at any time.
  bool Found(const std::string& query) {
    const json result = Ask(absl::StrCat("/api/v1/query_range?query=", Encoded(query), "&start=", Seconds(begun_),
                                         "&end=", Seconds(absl::Now()), "&step=0.2"));
    return !result.empty();
  }
  std::set<std::string> Firing() {
    std::set<std::string> firing;
    for (const json& series : Query(R"(ALERTS{alertstate="firing"})")) firing.insert(series["metric"]["alertname"]);
    return firing;
  }
  // Of one job, if it is given.
  void AwaitAlert(const std::string& alert, const std::string& job = "") {
    Until(alert, [&] { return Fires(alert, job); });
  }
  // Of one that may be over already.
  void AwaitFired(const std::string& alert) {
    Until(alert, [&] { return Found(absl::StrCat(R"(ALERTS{alertstate="firing", alertname=")", alert, "\"}")); });
  }
  void AwaitCalm(const std::string& alert, const std::string& job = "") {
    Until(absl::StrCat("the end of ", alert), [&] { return !Fires(alert, job); });
  }
  void Until(const std::string& what, const std::function<bool()>& holds) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (!holds()) {
      if (process_->Wait(absl::Now() + kLook).has_value() || absl::Now() > deadline) {
        FAIL() << "waited for " << what << "; firing: " << absl::StrJoin(Firing(), ", ") << "\n"
               << Read(folder_ / "log").substr(0, 4000);
      }
    }
  }
  std::string Get(const std::string& path) {
    return Exchange(address_, absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: h\r\n\r\n"));
  }

 private:
  bool Fires(const std::string& alert, const std::string& job) {
    return !Query(absl::StrCat(R"(ALERTS{alertstate="firing", alertname=")", alert, "\"",
                               job.empty() ? "" : absl::StrCat(", train_job=\"", job, "\""), "}"))
                .empty();
  }
  json Ask(const std::string& path) {
    const std::string answer = Get(path);
    const size_t body = answer.find("\r\n\r\n");
    const json parsed = json::parse(body == std::string::npos ? "" : answer.substr(body + 4), nullptr, false);
    if (parsed.is_discarded() || parsed["status"] != "success") {
      ADD_FAILURE() << path << ": " << answer;
      return json::array();
    }
    return parsed["data"]["result"];
  }

  const fs::path folder_;
  const absl::Time begun_;
  std::unique_ptr<ChildProcess> process_;
  std::string address_;
};

// `millrace serve` of a checkpoint.
class Serving {
 public:
  Serving(const std::string& model, const fs::path& folder) {
    ChildProcess::Options options;
    options.arguments = {Millrace(), "serve", "--model", model, "--port", "0", "--threads", "1"};
    options.log_file = folder / "serve.log";
    auto process = ChildProcess::Start(options);
    EXPECT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
    while (!RE2::PartialMatch(Read(options.log_file), R"( at http://([\d.:]+))", &address_)) {
      if (process_->Wait(absl::Now() + kLook).has_value()) {
        ADD_FAILURE() << Read(options.log_file);
        return;
      }
    }
  }
  const std::string& address() const { return address_; }

 private:
  std::unique_ptr<ChildProcess> process_;
  std::string address_;
};

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
  Write(folder / "text.txt", text);
  Write(folder / "pairs.jsonl", pairs);
  Write(folder / "prompts.jsonl", prompts);
  Write(folder / "job.yaml", kJob);
}

TEST(Monitoring, SeesAWorkingClusterAndItsTroubles) {
  const std::string program = FindPrometheus();
  if (program.empty()) GTEST_SKIP() << "SKIPPED: there is no prometheus; ./test fetches it";
  const TemporaryFolder folder;
  WriteData(folder.path());
  Cluster cluster({.workers = 2, .shards = 2, .lease_seconds = 2, .metrics = true});

  // Something to serve, and a call that ends badly.
  const std::string first = cluster.Submit(folder / "job.yaml", {"phases.0.stop.max_steps=20"});
  cluster.Await(first, "a checkpoint", [&](const v1::Job&) { return fs::exists(cluster.Checkpoint(first, "best")); });
  const Serving serving(cluster.Checkpoint(first, "best"), folder.path());
  Prometheus prometheus(program, folder.path() / "prometheus", cluster, serving.address());
  prometheus.Until("every target's first scrape", [&] {
    const json up = prometheus.Query("sum(up)");
    return !up.empty() && up[0]["value"][1] == "6";
  });
  const std::string job = cluster.Submit(folder / "job.yaml");
  EXPECT_FALSE(cluster.client().GetJob("no-such-job").ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(Exchange(serving.address(),
                         PostBytes("/v1/completions", R"({"model": "best", "prompt": "what is", "max_tokens": 8})",
                                   "Connection: close\r\n")),
                ::testing::HasSubstr("200"));
  }
  cluster.AwaitSuccess(job);
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
    Write(folder / "metrics.txt", answer.substr(answer.find("\r\n\r\n") + 4));
    const std::string check = absl::StrCat(promtool.string(), " check metrics < ", folder / "metrics.txt");
    EXPECT_EQ(std::system(check.c_str()), 0) << role;
  }

  // Every metric of the table exists.
  const std::string table = Read(fs::path(MILLRACE_SOURCE_DIR) / "docs/metrics.md");
  re2::StringPiece rest(table);
  std::string name, type;
  int metrics = 0;
  while (RE2::FindAndConsume(&rest, R"(\| `((?:millrace|process)_[a-z0-9_]+)` \| ([a-z]+) \|)", &name, &type)) {
    if (absl::StartsWith(name, "millrace_tls_")) continue;  // of clusters with certificates
    ++metrics;
    EXPECT_TRUE(prometheus.Found(type == "histogram" ? name + "_count" : name)) << name;
  }
  EXPECT_GT(metrics, 60);

  // Every query of every panel finds something in one of the phases.
  for (const auto& entry : fs::directory_iterator(fs::path(MILLRACE_SOURCE_DIR) / "deploy/grafana/dashboards")) {
    for (const json& panel : json::parse(Read(entry.path()))["panels"]) {
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

  // A loss that explodes.
  const std::string explodes =
      cluster.Submit("examples/tiny.yaml",
                     {"phases.0.optimizer.type=sgd", "phases.0.optimizer.lr=100", "phases.0.optimizer.clip_norm=0",
                      "phases.0.optimizer.weight_decay=0", "phases.0.optimizer.warmup_steps=0", "model.init_std=10",
                      "phases.0.optimizer.schedule=constant", "model.family=llama"});
  cluster.AwaitFailure(explodes);
  prometheus.AwaitFired("MillraceLossNotFinite");
  prometheus.AwaitFired("MillraceJobFailed");

  // Workers that hang: their leases are freed, nobody is left, nothing is committed.
  const std::string longer = cluster.Submit("examples/tiny.yaml", {"phases.0.stop.max_steps=1000000"});
  cluster.AwaitStep(longer, 20);
  for (size_t i = 0; i < 2; ++i) cluster.worker(i).Stop();
  prometheus.AwaitAlert("MillraceTargetDown");
  prometheus.AwaitAlert("MillraceUnitsLeasedAgain");
  prometheus.AwaitAlert("MillraceNoWorkers");
  prometheus.AwaitAlert("MillraceTrainingStalled", longer);
  for (size_t i = 0; i < 2; ++i) cluster.worker(i).Continue();
  for (const char* alert : {"MillraceTargetDown", "MillraceNoWorkers"}) prometheus.AwaitCalm(alert);
  // What is told of jobs that have ended stays for a minute, which is long here.
  prometheus.AwaitCalm("MillraceTrainingStalled", longer);

  // A shard that is killed.
  cluster.shard(1).Kill();
  prometheus.AwaitAlert("MillraceTargetDown");
  prometheus.AwaitAlert("MillraceShardMissing");
  cluster.shard(1).Restart();
  prometheus.AwaitCalm("MillraceTargetDown");
  prometheus.AwaitCalm("MillraceShardMissing");

  // No text of an alert failed to be made.
  for (const json& group :
       json::parse(prometheus.Get("/api/v1/rules")
                       .substr(prometheus.Get("/api/v1/rules").find("\r\n\r\n") + 4))["data"]["groups"]) {
    for (const json& rule : group["rules"]) EXPECT_EQ(rule["health"], "ok") << rule;
  }
}

}  // namespace
}  // namespace millrace::testing
