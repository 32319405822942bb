// millrace submit: gives a job to a coordinator.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/submission.h"
#include "cli/watch.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status RunSubmit(Arguments arguments) {
  std::string job_file, like, key;
  std::vector<std::string> overrides, labels;
  bool watch = false, dry_run = false, json = false;
  CoordinatorFlags where;
  Flags flags("submit", "Gives a job to a coordinator, which trains its jobs one after another.",
              "examples/tiny.yaml --watch");
  flags.Positional("JOB.yaml", "the job file (docs/job-file.md); its paths must mean the same to the coordinator",
                   &job_file);
  flags.Text("like", "JOB", "instead of a job file: the same again as this job, but for what --set says", &like);
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file, as in phases.0.stop.max_steps=20", &overrides);
  flags.List("label", "NAME=VALUE", "a label of the job, besides those of its file", &labels);
  flags.Text("key", "KEY", "submitting again with the same key gives the job that it made, instead of another", &key);
  flags.Switch("dry-run", "only has the coordinator check the job, and prints it with all defaults", &dry_run);
  flags.Switch("watch", "follows the job to its end", &watch);
  flags.Switch("json", "prints the job, or with --watch its events, as JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  if (job_file.empty() == like.empty()) return UsageError("submit takes a job file or --like JOB");
  if (dry_run && watch) return UsageError("--dry-run submits nothing that --watch could follow");
  v1::SubmitJobRequest request;
  if (like.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(request, ReadSubmission(job_file, overrides));
  } else {
    request.set_template_job_id(like);
    for (const std::string& override_text : overrides) request.add_overrides(override_text);
  }
  MILLRACE_RETURN_IF_ERROR(AddLabels(labels, "label", request.mutable_labels()));
  request.set_idempotency_key(key);
  request.set_validate_only(dry_run);
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, coordinator.SubmitJob(request));
  if (watch) return WatchToEnd(&coordinator, job.id(), json);
  if (json || dry_run) {
    std::printf("%s\n", (dry_run ? ToJson(job.spec()) : ToJson(job)).dump(dry_run ? 2 : -1).c_str());
  } else {
    std::printf("%s is %s; `millrace watch %s` follows it\n", job.id().c_str(), StateName(job.state()).c_str(),
                job.id().c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
