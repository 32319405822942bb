// Runs a real Prometheus with a copy of deploy/prometheus, and asks it.
//
//   Prometheus prometheus(folder / "prometheus", TargetsOf(cluster));
//   cluster.shard(1).Kill();
//   prometheus.AwaitAlert("MillraceShardMissing");
//
// Time is shortened: in the copy a minute becomes 200 ms, as "Nm" and "Nh" of rules, and as "N * 60" and "N * 3600"
// where they are seconds; Prometheus scrapes and evaluates every 200 ms. Days ("N * 86400") stay days.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/process.h"
#include "nlohmann/json.hpp"
#include "testing/cluster.h"

namespace millrace::testing {

std::string ReadText(const std::filesystem::path& path);
void WriteText(const std::filesystem::path& path, const std::string& text);

// The program that ./test unpacks, or an installed one; empty if there is neither.
std::string FindPrometheus();

// HOST:PORT of what is scraped.
struct Targets {
  std::vector<std::string> coordinator, shards, workers, serve;
};
Targets TargetsOf(const Cluster& cluster);

// Waits are bounded: what does not come fails the test, with what fires instead.
class Prometheus {
 public:
  // `folder` is made. Requires that there is a program.
  Prometheus(const std::filesystem::path& folder, const Targets& targets,
             absl::Duration minute = absl::Milliseconds(200));

  // Result of an instant query.
  nlohmann::json Query(const std::string& query);
  // Whether there was anything at any time since the start.
  bool Found(const std::string& query);
  std::set<std::string> Firing();
  // Of one job, if it is given. Its texts must have come out whole.
  void AwaitAlert(const std::string& alert, const std::string& job = "");
  // Of one that may be over already.
  void AwaitFired(const std::string& alert);
  void AwaitCalm(const std::string& alert, const std::string& job = "");
  // Until each of so many targets has been scraped.
  void AwaitTargets(int count);
  void Until(const std::string& what, const std::function<bool()>& holds);
  std::string Get(const std::string& path);

 private:
  bool Fires(const std::string& alert, const std::string& job);
  void CheckTexts(const std::string& alert);
  nlohmann::json Ask(const std::string& path);

  const std::filesystem::path folder_;
  const absl::Time begun_;
  std::unique_ptr<ChildProcess> process_;
  std::string address_;
};

// `millrace serve` of a checkpoint.
class Serving {
 public:
  Serving(const std::string& model, const std::filesystem::path& folder, const std::vector<std::string>& flags = {});
  const std::string& address() const { return address_; }

 private:
  std::unique_ptr<ChildProcess> process_;
  std::string address_;
};

}  // namespace millrace::testing
