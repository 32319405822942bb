#include "monitoring/prometheus.h"

#include <cstdint>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "re2/re2.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kLook = absl::Milliseconds(100);

// Rules whose durations are a fraction of themselves.
std::string Shortened(const std::string& rules, absl::Duration minute) {
  std::string text;
  re2::StringPiece rest(rules);
  static const RE2 duration(R"((?s)(.*?)(?:\b(\d+)([mh])\b|\* (60|3600)\b))");
  std::string before, count, unit, seconds;
  while (RE2::Consume(&rest, duration, &before, &count, &unit, &seconds)) {
    absl::StrAppend(&text, before);
    if (seconds.empty()) {
      absl::StrAppend(&text, std::stol(count) * (unit == "h" ? 60 : 1) * absl::ToInt64Milliseconds(minute), "ms");
    } else {
      absl::StrAppend(&text, "* ", std::stod(seconds) / 60 * absl::ToDoubleSeconds(minute));
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

}  // namespace

std::string ReadText(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << "cannot read " << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void WriteText(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string FindPrometheus() {
  if (const fs::path unpacked = fs::path(PROMETHEUS_FOLDER) / "prometheus"; fs::exists(unpacked)) return unpacked;
  if (fs::exists("/usr/bin/prometheus")) return "/usr/bin/prometheus";
  return "";
}

Targets TargetsOf(const Cluster& cluster) {
  return {cluster.metrics("coordinator"), cluster.metrics("shard"), cluster.metrics("worker"), {}};
}

Prometheus::Prometheus(const fs::path& folder, const Targets& targets, absl::Duration minute)
    : folder_(folder), begun_(absl::Now()) {
  fs::copy(fs::path(MILLRACE_SOURCE_DIR) / "deploy/prometheus", folder_, fs::copy_options::recursive);
  const auto place = [this](const std::string& file, const std::vector<std::string>& addresses) {
    WriteText(folder_ / "targets" / file,
              addresses.empty() ? "[]\n" : absl::StrCat("- targets: [\"", absl::StrJoin(addresses, "\", \""), "\"]\n"));
  };
  place("coordinator.yml", targets.coordinator);
  place("shards.yml", targets.shards);
  place("workers.yml", targets.workers);
  place("serve.yml", targets.serve);
  for (const char* rules : {"rules/alerts.yml", "rules/recording.yml"}) {
    WriteText(folder_ / rules, Shortened(ReadText(folder_ / rules), minute));
  }
  const std::string configuration = ReadText(folder_ / "prometheus.yml");
  WriteText(folder_ / "prometheus.yml", absl::StrReplaceAll(configuration, {{"15s", "200ms"}}));

  ChildProcess::Options options;
  options.arguments = {FindPrometheus(), absl::StrCat("--config.file=", (folder_ / "prometheus.yml").string()),
                       absl::StrCat("--storage.tsdb.path=", (folder_ / "data").string()),
                       "--web.listen-address=127.0.0.1:0"};
  options.directory = folder_;
  options.log_file = folder_ / "log";
  auto process = ChildProcess::Start(options);
  EXPECT_OK(process);
  process_ = *std::move(process);
  // It says where it listens.
  Until("Prometheus' address", [this] {
    const std::string log = ReadText(folder_ / "log");
    return RE2::PartialMatch(log, R"(msg="Listening on" address=(127\.0\.0\.1:\d+))", &address_);
  });
  Until("Prometheus' readiness", [this] { return absl::StrContains(Get("/-/ready"), "200 OK"); });
}

json Prometheus::Query(const std::string& query) {
  return Ask(absl::StrCat("/api/v1/query?query=", Encoded(query)))["result"];
}

bool Prometheus::Found(const std::string& query) {
  return !Ask(absl::StrCat("/api/v1/query_range?query=", Encoded(query), "&start=", Seconds(begun_),
                           "&end=", Seconds(absl::Now()), "&step=0.2"))["result"]
              .empty();
}

// By its own word, not by the series ALERTS: on a busy machine the mark that ends one may be lost.
std::set<std::string> Prometheus::Firing() {
  std::set<std::string> firing;
  const json alerts = Ask("/api/v1/alerts")["alerts"];
  for (const json& active : alerts) {
    if (active["state"] == "firing") firing.insert(active["labels"]["alertname"]);
  }
  return firing;
}

void Prometheus::AwaitAlert(const std::string& alert, const std::string& job) {
  Until(alert, [&] { return Fires(alert, job); });
  CheckTexts(alert);
}

void Prometheus::AwaitFired(const std::string& alert) {
  Until(alert, [&] { return Found(absl::StrCat(R"(ALERTS{alertstate="firing", alertname=")", alert, "\"}")); });
}

void Prometheus::AwaitCalm(const std::string& alert, const std::string& job) {
  Until(absl::StrCat("the end of ", alert), [&] { return !Fires(alert, job); });
}

void Prometheus::AwaitTargets(int count) {
  Until("every target's first scrape", [&] {
    const json up = Query("sum(up)");
    return !up.empty() && up[0]["value"][1] == absl::StrCat(count);
  });
}

void Prometheus::Until(const std::string& what, const std::function<bool()>& holds) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!holds()) {
    if (process_->Wait(absl::Now() + kLook).has_value() || absl::Now() > deadline) {
      FAIL() << "waited for " << what << "; firing: " << absl::StrJoin(Firing(), ", ") << "\n"
             << ReadText(folder_ / "log").substr(0, 4000);
    }
  }
}

std::string Prometheus::Get(const std::string& path) {
  return Exchange(address_, absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: h\r\n\r\n"));
}

bool Prometheus::Fires(const std::string& alert, const std::string& job) {
  const json alerts = Ask("/api/v1/alerts")["alerts"];
  for (const json& active : alerts) {
    const json& labels = active["labels"];
    if (active["state"] == "firing" && labels["alertname"] == alert &&
        (job.empty() || labels.value("train_job", "") == job)) {
      return true;
    }
  }
  return false;
}

// What whoever is called reads must say all that the rule wants to say.
void Prometheus::CheckTexts(const std::string& alert) {
  const json alerts = Ask("/api/v1/alerts")["alerts"];
  for (const json& active : alerts) {
    if (active["labels"]["alertname"] != alert) continue;
    for (const auto& [name, text] : active["annotations"].items()) {
      EXPECT_FALSE(absl::StrContains(text.get<std::string>(), "error expanding") ||
                   absl::StrContains(text.get<std::string>(), "<no value>") ||
                   // A label that the alert does not have leaves two spaces or one at an end.
                   absl::StrContains(text.get<std::string>(), "  ") || absl::StartsWith(text.get<std::string>(), " ") ||
                   absl::EndsWith(text.get<std::string>(), " "))
          << alert << ", " << name << ": " << text;
    }
  }
}

json Prometheus::Ask(const std::string& path) {
  const std::string answer = Get(path);
  const size_t body = answer.find("\r\n\r\n");
  const json parsed = json::parse(body == std::string::npos ? "" : answer.substr(body + 4), nullptr, false);
  if (parsed.is_discarded() || parsed["status"] != "success") {
    ADD_FAILURE() << path << ": " << answer;
    return {{"result", json::array()}, {"alerts", json::array()}};
  }
  return parsed["data"];
}

Serving::Serving(const std::string& model, const fs::path& folder, const std::vector<std::string>& flags) {
  ChildProcess::Options options;
  options.arguments = {Millrace(), "serve", "--model", model, "--port", "0", "--threads", "1"};
  options.arguments.insert(options.arguments.end(), flags.begin(), flags.end());
  options.log_file = folder / "serve.log";
  auto process = ChildProcess::Start(options);
  EXPECT_OK(process);
  process_ = *std::move(process);
  while (!RE2::PartialMatch(ReadText(options.log_file), R"( at http://([\d.:]+))", &address_)) {
    if (process_->Wait(absl::Now() + kLook).has_value()) {
      ADD_FAILURE() << ReadText(options.log_file);
      return;
    }
  }
}

}  // namespace millrace::testing
