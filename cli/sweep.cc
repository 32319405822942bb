// millrace sweep: many jobs that differ in a few fields.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/submission.h"
#include "client/coordinator_client.h"
#include "common/files.h"
#include "common/message_json.h"
#include "common/status.h"
#include "common/yaml_message.h"

namespace millrace::cli {
namespace {

void Print(const v1::Sweep& sweep, bool json) {
  if (json) {
    std::printf("%s\n", ToJson(sweep).dump(2).c_str());
    return;
  }
  std::printf("%s is %s\n", sweep.id().c_str(), absl::AsciiStrToLower(v1::Sweep::State_Name(sweep.state())).c_str());
  std::printf("  %-16s  %-9s  %8s  %8s  %s\n", "JOB", "STATE", "STEP", "HELD-OUT", "FIELDS");
  for (const v1::Trial& trial : sweep.trials()) {
    const std::string loss =
        trial.best_held_out_loss() == 0 ? "-" : absl::StrFormat("%.4f", trial.best_held_out_loss());
    const std::string state = trial.stop_reason() == "halved" ? "halved" : StateName(trial.state());
    std::printf("%s %-16s  %-9s  %8llu  %8s  %s\n", trial.job_id() == sweep.best_job_id() ? "*" : " ",
                trial.job_id().c_str(), state.c_str(), static_cast<unsigned long long>(trial.step()), loss.c_str(),
                absl::StrJoin(trial.overrides(), " ").c_str());
  }
}

absl::Status RunSweepStart(Arguments arguments) {
  std::string sweep_file, job_file;
  std::vector<std::string> overrides;
  bool json = false;
  CoordinatorFlags where;
  Flags flags("sweep start", "Submits a job for each trial of a sweep.", "examples/sweeps/lr.yaml examples/tiny.yaml");
  flags.Positional("SWEEP.yaml", "what is varied, and when trials are given up (docs/sweeps.md)", &sweep_file)
      .Required();
  flags.Positional("JOB.yaml", "the job file that all trials share", &job_file).Required();
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file for all trials", &overrides);
  flags.Switch("json", "prints the sweep as JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  v1::StartSweepRequest request;
  MILLRACE_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(sweep_file, kMaxYamlBytes));
  MILLRACE_RETURN_IF_ERROR(ParseYaml(yaml, {sweep_file, "sweep"}, request.mutable_sweep()));
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_job(), ReadSubmission(job_file, overrides));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Sweep sweep, coordinator.StartSweep(request));
  Print(sweep, json);
  return absl::OkStatus();
}

absl::Status RunSweepList(Arguments arguments) {
  bool json = false;
  CoordinatorFlags where;
  Flags flags("sweep list", "Lists the sweeps in the order in which they came.", "");
  flags.Switch("json", "prints a list of objects", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::Sweep> sweeps, coordinator.ListSweeps());
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const v1::Sweep& sweep : sweeps) list.push_back(ToJson(sweep));
    std::printf("%s\n", list.dump(2).c_str());
    return absl::OkStatus();
  }
  for (const v1::Sweep& sweep : sweeps) {
    std::printf("%s  %s  %d trials%s\n", sweep.id().c_str(),
                absl::AsciiStrToLower(v1::Sweep::State_Name(sweep.state())).c_str(), sweep.trials_size(),
                sweep.best_job_id().empty() ? "" : absl::StrCat(", best ", sweep.best_job_id()).c_str());
  }
  return absl::OkStatus();
}

absl::Status ShowOrCancel(Arguments arguments, const char* command, const char* summary,
                          absl::StatusOr<v1::Sweep> (client::CoordinatorClient::*call)(absl::string_view)) {
  std::string sweep_id;
  bool json = false;
  CoordinatorFlags where;
  Flags flags(command, summary, "lr");
  flags.Positional("SWEEP", "the sweep's id, as `millrace sweep list` lists it", &sweep_id).Required();
  flags.Switch("json", "prints the sweep as JSON", &json);
  where.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const Endpoint address, where.Address());
  client::CoordinatorClient coordinator(address);
  MILLRACE_ASSIGN_OR_RETURN(const v1::Sweep sweep, (coordinator.*call)(sweep_id));
  Print(sweep, json);
  return absl::OkStatus();
}

absl::Status RunSweepShow(Arguments arguments) {
  return ShowOrCancel(arguments, "sweep show", "Shows how the trials of a sweep stand; * marks the best that ended.",
                      &client::CoordinatorClient::GetSweep);
}

absl::Status RunSweepCancel(Arguments arguments) {
  return ShowOrCancel(arguments, "sweep cancel", "Cancels the trials that have not ended.",
                      &client::CoordinatorClient::CancelSweep);
}

constexpr char kHelp[] =
    "Tries a job with several values of some of its fields.\n\n"
    "  millrace sweep start SWEEP.yaml JOB.yaml    submits a job for each trial\n"
    "  millrace sweep show SWEEP                   shows how they stand\n"
    "  millrace sweep list                         lists the sweeps\n"
    "  millrace sweep cancel SWEEP                 gives up what has not ended\n\n"
    "`millrace sweep start --help` and so on say more; docs/sweeps.md says what can be varied.\n\n"
    "Example:\n  millrace sweep start examples/sweeps/lr.yaml examples/tiny.yaml\n";

}  // namespace

absl::Status RunSweep(Arguments arguments) {
  static constexpr CommandGroup::Part kParts[] = {
      {"start", RunSweepStart}, {"show", RunSweepShow}, {"list", RunSweepList}, {"cancel", RunSweepCancel}};
  return RunGroup({"sweep", kParts, "sweep start, show, list and cancel",
                   "`millrace sweep start`, `show`, `list` or `cancel`", kHelp},
                  arguments);
}

}  // namespace millrace::cli
