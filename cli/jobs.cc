// millrace jobs: lists what a coordinator has been given.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/submission.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunJobs(Arguments arguments) {
  bool json = false;
  std::vector<std::string> states, labels;
  std::string user, sweep;
  int64_t last = 0;
  CoordinatorFlags where;
  Flags flags("jobs", "Lists the jobs in the order in which they came.", "--state queued --state running");
  flags.List("state", "STATE", "only those that are queued, preparing, running, paused, succeeded, failed or cancelled",
             &states);
  flags.List("label", "NAME=VALUE", "only those with this label", &labels);
  flags.Text("user", "USER", "only those that this user submitted", &user);
  flags.Text("sweep", "SWEEP", "only the trials of this sweep", &sweep);
  flags.Integer("last", "N", "only the last N", &last, 1, 1'000'000);
  flags.Switch("json", "prints a list of objects", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  v1::ListJobsRequest request;
  for (const std::string& state : states) {
    v1::Job::State wanted;
    if (!v1::Job::State_Parse(absl::AsciiStrToUpper(state), &wanted)) {
      return UsageError(absl::StrCat("--state ", state, ": a job is queued, preparing, running, paused, succeeded, ",
                                     "failed or cancelled"));
    }
    request.add_states(wanted);
  }
  MILLRACE_RETURN_IF_ERROR(AddLabels(labels, "label", request.mutable_labels()));
  request.set_user(user);
  request.set_sweep_id(sweep);
  request.set_newest_first(last > 0);
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(std::vector<v1::Job> jobs,
                            coordinator.ListJobs(request, last > 0 ? static_cast<size_t>(last) : SIZE_MAX));
  if (last > 0) std::reverse(jobs.begin(), jobs.end());
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
