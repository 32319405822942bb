#include "cli/watch.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "common/message_json.h"
#include "common/progress.h"
#include "common/status.h"

namespace millrace::cli {

absl::Status WatchToEnd(client::CoordinatorClient* coordinator, const std::string& job_id, bool json) {
  {
    ProgressLine line(stdout, !json && isatty(STDOUT_FILENO) != 0);
    JobView view(&line);
    MILLRACE_RETURN_IF_ERROR(coordinator->WatchJob(job_id, 0, [&](const v1::JobEvent& event) {
      if (json) {
        line.Print(ToJson(event).dump());
      } else {
        view.Show(event);
      }
      return true;
    }));
  }
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, coordinator->GetJob(job_id));
  if (!json) std::printf("\n%s", Summary(job).c_str());
  if (job.state() == v1::Job::SUCCEEDED) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("job ", job_id, " has not succeeded: it ",
                   job.state() == v1::Job::FAILED ? absl::StrCat("failed: ", job.error()) : "was cancelled"));
}

absl::Status RunWatch(Arguments arguments) {
  std::string job_id;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("watch", "Shows what has happened to a job and follows it to its end.", "tiny");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  flags.Switch("json", "prints each event as a line of JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  return WatchToEnd(&coordinator, job_id, json);
}

}  // namespace millrace::cli
