// Lists the subcommands of `millrace`: one function a subcommand, in the file of its name.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace millrace::cli {

// What stands after the subcommand's name.
using Arguments = absl::Span<const std::string>;

struct Command {
  const char* group;  // heading in the list that `millrace --help` prints
  const char* name;
  const char* summary;  // one line
  absl::Status (*run)(Arguments arguments);
};

// In the order of the help.
absl::Span<const Command> Commands();

// A command that does several things, each named by its first argument.
struct CommandGroup {
  struct Part {
    const char* name;
    absl::Status (*run)(Arguments arguments);
  };
  const char* name;
  absl::Span<const Part> parts;
  const char* choices;   // behind "there are"
  const char* question;  // behind "NAME does what?"
  const char* help;      // all of --help
};
absl::Status RunGroup(const CommandGroup& group, Arguments arguments);

// A local cluster.
absl::Status RunTrain(Arguments arguments);
absl::Status RunUp(Arguments arguments);
absl::Status RunDown(Arguments arguments);

// Jobs of a coordinator.
absl::Status RunSubmit(Arguments arguments);
absl::Status RunJobs(Arguments arguments);
absl::Status RunWatch(Arguments arguments);
absl::Status RunLogs(Arguments arguments);
absl::Status RunCancel(Arguments arguments);
absl::Status RunPause(Arguments arguments);
absl::Status RunResume(Arguments arguments);
absl::Status RunDelete(Arguments arguments);
absl::Status RunUpdate(Arguments arguments);
absl::Status RunCurves(Arguments arguments);
absl::Status RunMembers(Arguments arguments);
absl::Status RunCheckpoints(Arguments arguments);

// `sweep start`, `sweep show`, `sweep list` and `sweep cancel`.
absl::Status RunSweep(Arguments arguments);

// A trained model.
absl::Status RunGenerate(Arguments arguments);
absl::Status RunScore(Arguments arguments);
absl::Status RunEval(Arguments arguments);
absl::Status RunEmbed(Arguments arguments);
absl::Status RunNearest(Arguments arguments);
absl::Status RunDigest(Arguments arguments);
absl::Status RunExport(Arguments arguments);
absl::Status RunImport(Arguments arguments);
absl::Status RunServe(Arguments arguments);

// `data prepare` and `data stats`.
absl::Status RunData(Arguments arguments);

// `ratings list`, `ratings import` and `ratings export`.
absl::Status RunRatings(Arguments arguments);

// One role, as run in a cluster.
absl::Status RunCoordinatorRole(Arguments arguments);
absl::Status RunShardRole(Arguments arguments);
absl::Status RunWorkerRole(Arguments arguments);
absl::Status RunHealth(Arguments arguments);

// `certs` and `certs token`.
absl::Status RunCerts(Arguments arguments);

}  // namespace millrace::cli
