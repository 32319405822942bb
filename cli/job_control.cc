// millrace cancel, pause, resume, delete, update: what users ask of a job.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/submission.h"
#include "client/coordinator_client.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

// Parses the flags that all have, asks, and prints what `ask` returns.
absl::Status Ask(
    Arguments arguments, const char* command, const char* summary,
    absl::FunctionRef<absl::StatusOr<std::string>(client::CoordinatorClient*, const std::string& job_id)> ask) {
  std::string job_id;
  CoordinatorFlags where;
  Flags flags(command, summary, "tiny");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const std::string answer, ask(&coordinator, job_id));
  std::printf("%s\n", answer.c_str());
  return absl::OkStatus();
}

absl::StatusOr<std::string> Standing(const absl::StatusOr<v1::Job>& job, const char* asked) {
  if (!job.ok()) return job.status();
  return job->id() + ": " + asked + "; it is " + StateName(job->state()) + " at present";
}

}  // namespace

absl::Status RunCancel(Arguments arguments) {
  return Ask(arguments, "cancel", "Gives a job up; what it checkpointed stays.",
             [](client::CoordinatorClient* coordinator, const std::string& job_id) {
               return Standing(coordinator->CancelJob(job_id), "to be cancelled");
             });
}

absl::Status RunPause(Arguments arguments) {
  return Ask(arguments, "pause", "Has a job finish its step, checkpoint and make room for the next job.",
             [](client::CoordinatorClient* coordinator, const std::string& job_id) {
               return Standing(coordinator->PauseJob(job_id), "to be paused");
             });
}

absl::Status RunResume(Arguments arguments) {
  return Ask(arguments, "resume", "Goes on with a paused, failed or cancelled job from its last checkpoint.",
             [](client::CoordinatorClient* coordinator, const std::string& job_id) {
               return Standing(coordinator->ResumeJob(job_id), "to go on");
             });
}

absl::Status RunDelete(Arguments arguments) {
  return Ask(arguments, "delete", "Removes a job that does not run, with its checkpoints and all its files.",
             [](client::CoordinatorClient* coordinator, const std::string& job_id) -> absl::StatusOr<std::string> {
               MILLRACE_RETURN_IF_ERROR(coordinator->DeleteJob(job_id));
               return job_id + ": deleted";
             });
}

absl::Status RunUpdate(Arguments arguments) {
  std::string job_id;
  std::vector<std::string> labels, removed;
  int64_t priority = 0;
  CoordinatorFlags where;
  Flags flags("update", "Changes a job's priority and labels.", "tiny --priority 80 --label team=search");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  flags.Integer("priority", "N", "of the jobs that wait, the one with the highest is next", &priority, 0, 100);
  flags.List("label", "NAME=VALUE", "a label to set", &labels);
  flags.List("unlabel", "NAME", "a label to take away", &removed);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  v1::UpdateJobRequest request;
  request.set_job_id(job_id);
  if (flags.given("priority")) request.set_priority(static_cast<uint32_t>(priority));
  MILLRACE_RETURN_IF_ERROR(AddLabels(labels, "label", request.mutable_set_labels()));
  for (const std::string& name : removed) request.add_remove_labels(name);
  if (!request.has_priority() && labels.empty() && removed.empty()) {
    return UsageError("update changes what? --priority, --label or --unlabel");
  }
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, coordinator.UpdateJob(request));
  std::vector<std::string> now;
  for (const auto& [name, value] : job.spec().labels()) now.push_back(absl::StrCat(name, "=", value));
  std::sort(now.begin(), now.end());
  std::printf("%s: priority %u%s%s\n", job.id().c_str(), job.spec().priority(), now.empty() ? "" : "; ",
              absl::StrJoin(now, ", ").c_str());
  return absl::OkStatus();
}

}  // namespace millrace::cli
