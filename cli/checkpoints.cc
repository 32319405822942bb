// millrace checkpoints: lists what a job has kept.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/progress.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunCheckpoints(Arguments arguments) {
  std::string job_id;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("checkpoints", "Lists a job's checkpoints, the oldest first.", "tiny --json");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  flags.Switch("json", "prints a list of objects", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::Checkpoint> checkpoints, coordinator.ListCheckpoints(job_id));
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const v1::Checkpoint& checkpoint : checkpoints) list.push_back(ToJson(checkpoint));
    std::printf("%s\n", list.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("%-12s  %8s  %8s  %8s  %-16s  %s\n", "PHASE", "STEP", "HELD-OUT", "BYTES", "DIGEST", "FOLDER");
  for (const v1::Checkpoint& checkpoint : checkpoints) {
    const std::string loss = checkpoint.held_out_loss() > 0 ? absl::StrFormat("%.4f", checkpoint.held_out_loss()) : "-";
    std::printf("%-12s  %8lu  %8s  %8s  %-16s  %s%s%s\n", checkpoint.phase().c_str(),
                static_cast<unsigned long>(checkpoint.step()), loss.c_str(),
                ShortCount(static_cast<double>(checkpoint.bytes())).c_str(), checkpoint.digest().substr(0, 16).c_str(),
                checkpoint.directory().c_str(), checkpoint.best() ? "  (best)" : "",
                checkpoint.last() ? "  (last)" : "");
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
