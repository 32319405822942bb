// What distribution costs: tokens a second of training in one process, without any network, and of a local cluster of
// 1 coordinator, 2 shards and 2 workers, on the same cores; and the most memory that its processes had resident. Then
// of such a cluster with 1 Gbit/s and 1 ms between its hosts.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/network.h"
#include "bench/processes.h"
#include "client/coordinator_client.h"
#include "common/files.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

using kernels::Precision;

struct Setting {
  const char* name;
  const Model& model;
  int global_batch, microbatch;
  int rounds;      // of which the median counts: a neighbour may be busy for some seconds
  double seconds;  // of each; large models have few steps
  double goal;
  bool network;  // also with links held to a speed
};

constexpr Setting kSettings[] = {
    {"768-tokens", kModels[0], 12, 6, 3, 6, 0.75, false},
    {"2048-tokens", kModels[1], 8, 4, 1, 9, 0, false},
    {"8192-tokens", kModels[1], 32, 4, 1, 18, 0.95, true},
};
constexpr int kRoundsOfMissed = 3;
constexpr int kShards = 2, kWorkers = 2;
constexpr double kNetworkGoal = 0.9;

struct Measured {
  double tokens_per_second = 0;
  double worker_megabytes = 0;
  double shard_megabytes = 0;
};

// Tokens a second of the job on a cluster: from the first step event to the last one within the time.
absl::StatusOr<double> Train(const v1::JobSpec& job, double seconds, client::CoordinatorClient* coordinator) {
  v1::SubmitJobRequest request;
  *request.mutable_spec() = job;
  request.set_base_directory("/");
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job submitted, coordinator->SubmitJob(request));
  v1::JobEvent first, last;
  MILLRACE_RETURN_IF_ERROR(coordinator->WatchJob(submitted.id(), 0, [&](const v1::JobEvent& event) {
    if (!event.has_step() || event.step().step() < 3) return true;
    if (!first.has_step()) first = event;
    last = event;
    return static_cast<double>(last.unix_ms() - first.unix_ms()) < 1000 * seconds;
  }));
  const double tokens = static_cast<double>(last.step().tokens() - first.step().tokens());
  return tokens * 1000 / static_cast<double>(last.unix_ms() - first.unix_ms());
}

// The job on a new cluster in `directory`, each process on a host of its own if there is a network.
absl::StatusOr<Measured> WholeCluster(const v1::JobSpec& job, double seconds, const Machine& machine,
                                      const std::string& directory, const Network* network = nullptr) {
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<Role> roles;
  const auto start = [&](const std::string& role, const std::vector<std::string>& flags, bool serves) -> absl::Status {
    const int host = static_cast<int>(roles.size());
    std::vector<std::string> command = {machine.program, role};
    command.insert(command.end(), flags.begin(), flags.end());
    if (network != nullptr) command = network->On(host, std::move(command), serves);
    MILLRACE_ASSIGN_OR_RETURN(Role started,
                              StartRole(std::move(command), absl::StrCat(role, "-", host), directory, serves));
    roles.push_back(std::move(started));
    return absl::OkStatus();
  };
  std::vector<std::string> flags = {"--dir", directory, "--shards", absl::StrCat(kShards)};
  if (network != nullptr) flags.insert(flags.end(), {"--data-root", "/"});
  MILLRACE_RETURN_IF_ERROR(start("coordinator", flags, true));
  const std::string address = roles[0].address, threads = absl::StrCat(std::max(1, machine.threads / kWorkers));
  for (int i = 0; i < kShards; ++i) MILLRACE_RETURN_IF_ERROR(start("ps", {"--coordinator", address}, true));
  for (int i = 0; i < kWorkers; ++i) {
    MILLRACE_RETURN_IF_ERROR(start("worker", {"--coordinator", address, "--threads", threads}, false));
  }
  client::CoordinatorClient coordinator(address);
  Measured measured;
  MILLRACE_ASSIGN_OR_RETURN(measured.tokens_per_second, Train(job, seconds, &coordinator));
  for (size_t i = 1; i < roles.size(); ++i) {
    double& peak = i <= kShards ? measured.shard_megabytes : measured.worker_megabytes;
    peak = std::max(peak, PeakMegabytes(roles[i].process->pid()));
  }
  return measured;
}

// Adds the row of hosts on a local network, against what the cluster reached without.
absl::Status AddNetworkRow(const v1::JobSpec& job, double seconds, const Machine& machine, const std::string& directory,
                           const std::string& name, double unlimited, Report* report) {
  const std::string row = name + "/1gbit-1ms";
  const absl::StatusOr<std::unique_ptr<Network>> network = Network::Make(1 + kShards + kWorkers);
  if (!network.ok()) {
    report->Absent(row, network.status().message());
    return absl::OkStatus();
  }
  MILLRACE_ASSIGN_OR_RETURN(const Measured held, WholeCluster(job, seconds, machine, directory, network->get()));
  report->Add({row, held.tokens_per_second, "tokens/s", unlimited, kNetworkGoal});
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchDistribution(const Machine& machine, Report* report) {
  const TemporaryFolder folder;
  const std::string text = folder.path() + "/text.txt";
  MILLRACE_RETURN_IF_ERROR(WriteRandomText(text, kModels[0], 1'000'000));
  int run = 0;
  for (const Setting& setting : kSettings) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      const std::string name =
          absl::StrCat("distribution/", setting.model.name, "/", setting.name, "/", PrecisionName(precision));
      if (!report->Wants(name)) continue;
      MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job,
                                JobOf(setting.model, text, precision, setting.global_batch, setting.microbatch));
      const auto in_one_process = [&] {
        return TrainInOneProcess(job, static_cast<uint32_t>(setting.model.vocab), machine.isa, machine.threads,
                                 setting.seconds / 4);
      };
      std::vector<double> rates, ratios;
      Measured cluster;
      int rounds = setting.rounds;
      for (int round = 0; round < rounds; ++round) {
        MILLRACE_ASSIGN_OR_RETURN(const double before, in_one_process());
        MILLRACE_ASSIGN_OR_RETURN(cluster,
                                  WholeCluster(job, setting.seconds, machine, absl::StrCat(folder.path(), "/", ++run)));
        MILLRACE_ASSIGN_OR_RETURN(const double after, in_one_process());
        rates.push_back(cluster.tokens_per_second);
        ratios.push_back(cluster.tokens_per_second / ((before + after) / 2));
        if (ratios[0] < setting.goal) rounds = kRoundsOfMissed;
      }
      cluster.tokens_per_second = Median(rates);
      report->Add(
          {name, cluster.tokens_per_second, "tokens/s", cluster.tokens_per_second / Median(ratios), setting.goal});
      report->Add({name + "/worker-memory", cluster.worker_megabytes, "MiB"});
      report->Add({name + "/shard-memory", cluster.shard_megabytes, "MiB"});
      if (!setting.network) continue;
      MILLRACE_RETURN_IF_ERROR(AddNetworkRow(job, setting.seconds, machine, absl::StrCat(folder.path(), "/", ++run),
                                             name, cluster.tokens_per_second, report));
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::bench
