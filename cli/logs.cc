// millrace logs: what the coordinator noted about a job.
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "client/coordinator_client.h"
#include "common/message_json.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

// Notes and changes of state; steps and evaluations are `watch`'s.
bool Belongs(const v1::JobEvent& event) { return event.has_log() || event.has_state(); }

std::string Line(const v1::JobEvent& event) {
  const std::string when =
      absl::FormatTime("%Y-%m-%d %H:%M:%E3S", absl::FromUnixMillis(event.unix_ms()), absl::LocalTimeZone());
  if (event.has_log()) return absl::StrCat(when, "  ", event.log().severity(), "  ", event.log().text());
  std::string text = absl::StrCat(when, "  state  ", StateName(event.state().state()));
  if (!event.state().stop_reason().empty()) absl::StrAppend(&text, " (", event.state().stop_reason(), ")");
  if (!event.state().error().empty()) absl::StrAppend(&text, ": ", event.state().error());
  return text;
}

}  // namespace

absl::Status RunLogs(Arguments arguments) {
  std::string job_id;
  bool follow = false, json = false;
  CoordinatorFlags where;
  Flags flags("logs", "Prints what the coordinator noted about a job. Each process' own log is in DIR/logs.",
              "tiny --follow");
  flags.Positional("JOB", "the job's id, as `millrace jobs` lists it", &job_id).Required();
  flags.Switch("follow", "goes on until the job has ended", &follow);
  flags.Switch("json", "prints each note as a line of JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  const auto print = [json](const v1::JobEvent& event) {
    if (!Belongs(event)) return true;
    std::printf("%s\n", (json ? ToJson(event).dump() : Line(event)).c_str());
    std::fflush(stdout);
    return true;
  };
  return follow ? coordinator.WatchJob(job_id, 0, print) : coordinator.ReadEvents(job_id, 0, print);
}

}  // namespace millrace::cli
