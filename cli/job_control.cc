// millrace cancel, pause, resume, delete: what users ask of a job.
#include <cstdio>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "client/coordinator_client.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

// Parses the flags that all have, asks, and prints what `ask` returns.
absl::Status Ask(Arguments arguments, const char* command, const char* summary,
                 absl::FunctionRef<absl::StatusOr<std::string>(client::CoordinatorClient*, const std::string& job_id)>
                     ask) {
  std::string job_id;
  CoordinatorFlags where;
  Flags flags(command, summary, "tiny");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const std::string address, where.Address());
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

}  // namespace millrace::cli
