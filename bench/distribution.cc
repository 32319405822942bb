// What distribution costs: tokens a second of training in one process, without any network, and of a local cluster of
// 1 coordinator, 2 shards and 2 workers, on the same cores; and the most memory that its processes had resident.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/temporary_folder.h"
#include "cli/local_cluster.h"
#include "client/coordinator_client.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

using kernels::Precision;

struct Setting {
  const char* name;
  const Model& model;
  int global_batch, microbatch;
  double goal;
};

constexpr Setting kSettings[] = {
    {"768-tokens", kModels[0], 12, 6, 0.75},
    {"2048-tokens", kModels[1], 8, 4, 0},
    {"8192-tokens", kModels[1], 32, 4, 0.95},
};
constexpr double kSeconds = 20;

struct Measured {
  double tokens_per_second = 0;
  double worker_megabytes = 0;
  double shard_megabytes = 0;
};

// The same job on a cluster: from the first step event to the last one within the time.
absl::StatusOr<Measured> WholeCluster(const v1::JobSpec& job, const std::string& program, const std::string& directory,
                                      int workers, double seconds) {
  cli::LocalClusterOptions options;
  options.program = program;
  options.directory = directory;
  options.shards = 2;
  options.workers = workers;
  options.say = [](absl::string_view text) { std::fprintf(stderr, "%s\n", std::string(text).c_str()); };
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<cli::LocalCluster> cluster,
                            cli::LocalCluster::Start(std::move(options)));
  cluster->StartMembers();
  client::CoordinatorClient coordinator(cluster->coordinator());
  v1::SubmitJobRequest request;
  *request.mutable_spec() = job;
  request.set_base_directory("/");
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job submitted, coordinator.SubmitJob(request));
  v1::JobEvent first, last;
  MILLRACE_RETURN_IF_ERROR(coordinator.WatchJob(submitted.id(), 0, [&](const v1::JobEvent& event) {
    if (!event.has_step() || event.step().step() < 3) return true;
    if (!first.has_step()) first = event;
    last = event;
    return static_cast<double>(last.unix_ms() - first.unix_ms()) < 1000 * seconds;
  }));
  Measured measured;
  MILLRACE_ASSIGN_OR_RETURN(const cli::RunningCluster running, cli::FindRunningCluster(directory));
  for (const auto& process : running.processes) {
    double& peak = absl::StartsWith(process.name, "worker") ? measured.worker_megabytes : measured.shard_megabytes;
    if (process.name != "coordinator") peak = std::max(peak, PeakMegabytes(process.pid));
  }
  MILLRACE_RETURN_IF_ERROR(coordinator.CancelJob(submitted.id()).status());
  cluster->Stop();
  const double tokens = static_cast<double>(last.step().tokens() - first.step().tokens());
  measured.tokens_per_second = tokens * 1000 / static_cast<double>(last.unix_ms() - first.unix_ms());
  return measured;
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
      MILLRACE_ASSIGN_OR_RETURN(const double one, TrainInOneProcess(job, static_cast<uint32_t>(setting.model.vocab),
                                                                    machine.isa, machine.threads, kSeconds / 2));
      MILLRACE_ASSIGN_OR_RETURN(
          const Measured cluster,
          WholeCluster(job, machine.program, absl::StrCat(folder.path(), "/", ++run), 2, kSeconds));
      report->Add({name, cluster.tokens_per_second, "tokens/s", one, setting.goal});
      report->Add({name + "/worker-memory", cluster.worker_megabytes, "MiB"});
      report->Add({name + "/shard-memory", cluster.shard_megabytes, "MiB"});
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::bench
