#include "cli/commands.h"

namespace millrace::cli {
namespace {

constexpr char kTraining[] = "Training on a local cluster";
constexpr char kJobs[] = "Jobs of a coordinator";
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
    {kJobs, "checkpoints", "lists a job's checkpoints", &RunCheckpoints},
    {kRoles, "coordinator", "plans, leases work, decides on evaluation, checkpoint and stop", &RunCoordinatorRole},
    {kRoles, "ps", "holds a share of the parameters", &RunShardRole},
    {kRoles, "worker", "computes gradients and evaluations", &RunWorkerRole},
};

}  // namespace

absl::Span<const Command> Commands() { return kCommands; }

}  // namespace millrace::cli
