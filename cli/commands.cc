#include "cli/commands.h"

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/flags.h"

namespace millrace::cli {
namespace {

constexpr char kTraining[] = "Training on a local cluster";
constexpr char kJobs[] = "Jobs of a coordinator";
constexpr char kModels[] = "Use a model";
constexpr char kData[] = "Data";
constexpr char kRoles[] = "One role, as run in a cluster";

constexpr Command kCommands[] = {
    {kTraining, "train", "trains a job on a cluster of its own and ends with it", &RunTrain},
    {kTraining, "up", "starts a local cluster that stays", &RunUp},
    {kTraining, "down", "stops it", &RunDown},
    {kJobs, "submit", "gives a job to a coordinator", &RunSubmit},
    {kJobs, "jobs", "lists the jobs", &RunJobs},
    {kJobs, "watch", "follows a job's progress", &RunWatch},
    {kJobs, "logs", "prints what the coordinator noted about a job", &RunLogs},
    {kJobs, "cancel", "gives a job up", &RunCancel},
    {kJobs, "pause", "stops a job after a checkpoint", &RunPause},
    {kJobs, "resume", "goes on with a paused, failed or cancelled job", &RunResume},
    {kJobs, "delete", "removes a job that does not run, with its files", &RunDelete},
    {kJobs, "update", "changes a job's priority and labels", &RunUpdate},
    {kJobs, "curves", "prints what a job measured", &RunCurves},
    {kJobs, "sweep", "start, show, list, cancel: tries several values of a job's fields", &RunSweep},
    {kJobs, "members", "lists the workers and shards", &RunMembers},
    {kJobs, "checkpoints", "lists a job's checkpoints", &RunCheckpoints},
    {kModels, "generate", "continues a prompt", &RunGenerate},
    {kModels, "score", "tells how likely a text is", &RunScore},
    {kModels, "eval", "tells how well text is predicted, or tasks are done", &RunEval},
    {kModels, "embed", "gives a text as a vector", &RunEmbed},
    {kModels, "nearest", "lists the tokens that are like a token", &RunNearest},
    {kModels, "serve", "answers over HTTP, as OpenAI's API does", &RunServe},
    {kModels, "digest", "sums up all weights", &RunDigest},
    {kModels, "export", "writes a model for other programs", &RunExport},
    {kModels, "import", "reads a model of other programs", &RunImport},
    {kData, "data", "prepare, stats: makes tokens of a job's text, tells what it became", &RunData},
    {kData, "ratings", "list, import, export: pairs of answers that people compare", &RunRatings},
    {kRoles, "coordinator", "plans, leases work, decides on evaluation, checkpoint and stop", &RunCoordinatorRole},
    {kRoles, "ps", "holds a share of the parameters", &RunShardRole},
    {kRoles, "worker", "computes gradients and evaluations", &RunWorkerRole},
    {kRoles, "certs", "makes certificates for all roles, and tokens for people", &RunCerts},
    {kRoles, "health", "asks a role how it does", &RunHealth},
};

}  // namespace

absl::Span<const Command> Commands() { return kCommands; }

absl::Status RunGroup(const CommandGroup& group, Arguments arguments) {
  if (arguments.empty()) return UsageError(absl::StrCat(group.name, " does what? ", group.question));
  const std::string& name = arguments[0];
  std::vector<std::string> names;
  for (const CommandGroup::Part& part : group.parts) {
    if (name == part.name) return part.run(arguments.subspan(1));
    names.push_back(part.name);
  }
  if (name == "--help" || name == "-h") {
    std::fputs(group.help, stdout);
    return absl::OkStatus();
  }
  const std::string nearest = Nearest(name, names);
  return UsageError(absl::StrCat("there is no command '", group.name, " ", name, "'; ",
                                 nearest.empty() ? absl::StrCat("there are ", group.choices)
                                                 : absl::StrCat("did you mean ", group.name, " ", nearest, "?")));
}

}  // namespace millrace::cli
