// millrace health: asks a role how it does.
#include "common/health.h"

#include <string>

#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunHealth(Arguments arguments) {
  std::string address, service(kLive);
  double timeout = 3;
  Flags flags("health", "Asks a role that was started with --health how it does: exit status 0 if it is well, else 1.",
              "127.0.0.1:7499 --service ready");
  flags.Positional("HOST:PORT", "the role's --health address", &address).Required();
  flags.Text("service", "live|ready", "live: the process answers; ready: it can do what it is there for", &service);
  flags.Number("timeout", "SECONDS", "how long to wait for the answer", &timeout, 0.01, 3600);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  return CheckHealth(address, service, absl::Seconds(timeout));
}

}  // namespace millrace::cli
