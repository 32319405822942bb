// millrace jobs: lists what a coordinator has been given.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/json.h"
#include "client/coordinator_client.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunJobs(Arguments arguments) {
  bool json = false;
  CoordinatorFlags where;
  Flags flags("jobs", "Lists the jobs in the order in which they came.", "--json");
  flags.Switch("json", "prints a list of objects", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const std::string address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::Job> jobs, coordinator.ListJobs());
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const v1::Job& job : jobs) list.push_back(ToJson(job));
    std::printf("%s\n", list.dump(2).c_str());
    return absl::OkStatus();
  }
  int width = 3;
  for (const v1::Job& job : jobs) width = std::max(width, static_cast<int>(job.id().size()));
  std::printf("%-*s  %-9s  %-12s  %15s  %8s  %8s\n", width, "JOB", "STATE", "PHASE", "STEP", "LOSS", "HELD-OUT");
  for (const v1::Job& job : jobs) {
    const std::string step = absl::StrFormat("%d/%d", job.step(), job.max_steps());
    const std::string loss = job.step() > 0 ? absl::StrFormat("%.4f", job.train_loss()) : "-";
    const std::string held_out = job.held_out_loss() > 0 ? absl::StrFormat("%.4f", job.held_out_loss()) : "-";
    std::printf("%-*s  %-9s  %-12s  %15s  %8s  %8s%s\n", width, job.id().c_str(), StateName(job.state()).c_str(),
                job.phase().empty() ? "-" : job.phase().c_str(), step.c_str(), loss.c_str(), held_out.c_str(),
                job.error().empty() ? "" : ("  " + job.error()).c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
