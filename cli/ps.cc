// millrace ps: the role that holds parameters.
#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/role_flags.h"
#include "cli/stop_signal.h"
#include "common/machine.h"
#include "common/status.h"
#include "ps/shard.h"

namespace millrace::cli {

absl::Status RunShardRole(Arguments arguments) {
  std::string coordinator, name, advertise;
  int64_t threads = 1;
  double grace = 60;
  ServerFlags server;
  Flags flags("ps", "Runs a parameter-server shard: holds parameters, sums gradients, applies the optimizer.",
              "--coordinator coordinator:7400 --listen 10.0.0.5:7401 --tls certs/shard");
  flags.Text("coordinator", "HOST:PORT", "the cluster to join", &coordinator).Required();
  flags.Text("name", "NAME", "unique among the living shards; default HOST:PID", &name);
  flags.Text("advertise", "HOST:PORT", "where others reach it, if not at --listen: a name that outlives its address",
             &advertise);
  flags.Integer("threads", "T", "for the optimizer", &threads, 1, 1024);
  flags.Number("grace", "SECONDS", "how long to wait at the end for the checkpoint of a job that needs it", &grace, 0,
               3600);
  server.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  server.SetLog();
  StopSignal stop;
  ps::ShardOptions options;
  options.coordinator = coordinator;
  options.name = name.empty() ? ProcessName() : name;
  options.listen = server.listen;
  options.advertise = advertise;
  options.address_file = server.address_file;
  options.metrics_listen = server.metrics;
  options.health_listen = server.health;
  options.threads = static_cast<int>(threads);
  MILLRACE_ASSIGN_OR_RETURN(options.tls, server.tls.Open());
  options.plaintext = server.plaintext;
  options.grace = absl::Seconds(grace);
  options.stop = stop.notification();
  return ps::RunShard(options);
}

}  // namespace millrace::cli
