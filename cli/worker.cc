// millrace worker: the role that computes.
#include "worker/worker.h"

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/local_cluster.h"
#include "cli/role_flags.h"
#include "cli/stop_signal.h"
#include "common/machine.h"
#include "common/status.h"
#include "kernels/compute.h"

namespace millrace::cli {

absl::Status RunWorkerRole(Arguments arguments) {
  std::string coordinator, name, max_isa, shared_memory = "auto";
  int64_t threads = 0;
  ServerFlags server;
  Flags flags("worker", "Runs a worker: takes units of work, computes gradients, evaluates.",
              "--coordinator coordinator:7400 --threads 8 --tls certs/worker");
  flags.Text("coordinator", "HOST:PORT", "the cluster to join", &coordinator).Required();
  flags.Text("name", "NAME", "unique among the living workers; default HOST:PID", &name);
  flags.Integer("threads", "T", "that compute; 0: one for each core", &threads, 0, 1024);
  flags.Text("max-isa", "ISA", "use no instructions above these: scalar, avx2, avx512 or avx512_bf16", &max_isa);
  flags.Text("shared-memory", "auto|off", "auto: blocks of shards on this machine pass through memory", &shared_memory);
  server.DeclareMetrics(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  server.SetLog();
  worker::WorkerOptions options;
  options.max_isa = kernels::DetectIsa();
  if (!max_isa.empty()) {
    const absl::StatusOr<kernels::Isa> isa = kernels::ParseIsa(max_isa);
    if (!isa.ok()) return UsageError(absl::StrCat("--max-isa: ", isa.status().message()));
    if (*isa > options.max_isa) {
      return absl::FailedPreconditionError(
          absl::StrCat("--max-isa ", max_isa, ": this processor has no more than ", kernels::IsaName(options.max_isa)));
    }
    options.max_isa = *isa;
  }
  if (shared_memory != "auto" && shared_memory != "off") {
    return UsageError(absl::StrCat("--shared-memory takes auto or off, not '", shared_memory, "'"));
  }
  options.share_memory = shared_memory == "auto";
  StopSignal stop;
  options.coordinator = coordinator;
  options.name = name.empty() ? ProcessName() : name;
  options.threads = threads > 0 ? static_cast<int>(threads) : Cores();
  options.metrics_listen = server.metrics;
  MILLRACE_ASSIGN_OR_RETURN(options.tls, server.tls.Open());
  options.health_listen = server.health;
  options.stop = stop.notification();
  return worker::RunWorker(options);
}

}  // namespace millrace::cli
