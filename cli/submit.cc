// millrace submit: gives a job to a coordinator.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/json.h"
#include "cli/submission.h"
#include "cli/watch.h"
#include "client/coordinator_client.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunSubmit(Arguments arguments) {
  std::string job_file;
  std::vector<std::string> overrides;
  bool watch = false, json = false;
  CoordinatorFlags where;
  Flags flags("submit", "Gives a job to a coordinator, which trains its jobs one after another.",
              "examples/tiny.yaml --watch");
  flags.Positional("JOB.yaml", "the job file (docs/job-file.md); its paths must mean the same to the coordinator",
                   &job_file).Required();
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file, as in phases.0.stop.max_steps=20", &overrides);
  flags.Switch("watch", "follows the job to its end", &watch);
  flags.Switch("json", "prints the job, or with --watch its events, as JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const v1::SubmitJobRequest request, ReadSubmission(job_file, overrides));
  MILLRACE_ASSIGN_OR_RETURN(const std::string address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, coordinator.SubmitJob(request));
  if (watch) return WatchToEnd(&coordinator, job.id(), json);
  if (json) {
    std::printf("%s\n", ToJson(job).dump().c_str());
  } else {
    std::printf("%s is %s; `millrace watch %s` follows it\n", job.id().c_str(), StateName(job.state()).c_str(),
                job.id().c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
