// The `millrace` command. Exit status: 0 done, 1 failed, 2 typed wrongly.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "common/files.h"

namespace millrace::cli {
namespace {

std::string Help() {
  std::string text =
      "Millrace trains language models on clusters of ordinary machines.\n\n  millrace COMMAND [--flags]\n";
  const char* group = nullptr;
  for (const Command& command : Commands()) {
    if (group != command.group) absl::StrAppend(&text, "\n", command.group, ":\n");
    group = command.group;
    const std::string name = command.name;
    absl::StrAppend(&text, "  ", name, std::string(name.size() < 14 ? 14 - name.size() : 1, ' '), command.summary,
                    "\n");
  }
  absl::StrAppend(&text, "\n`millrace COMMAND --help` says more.\n\nExample:\n",
                  "  millrace train examples/tiny.yaml --workers 2 --shards 2 --dir runs/tiny\n");
  return text;
}

absl::Status Dispatch(Arguments arguments) {
  if (arguments.empty()) return UsageError("which command? `millrace --help` lists them");
  const std::string& name = arguments[0];
  if (name == "--help" || name == "-h" || name == "help") {
    std::fputs(Help().c_str(), stdout);
    return absl::OkStatus();
  }
  if (name == "--version") {
    std::printf("millrace %s\n", MILLRACE_VERSION);
    return absl::OkStatus();
  }
  std::vector<std::string> names;
  for (const Command& command : Commands()) {
    if (name == command.name) return command.run(arguments.subspan(1));
    names.push_back(command.name);
  }
  const std::string nearest = Nearest(name, names);
  return UsageError(absl::StrCat("there is no command '", name, "'",
                                 nearest.empty() ? "; `millrace --help` lists them"
                                                 : absl::StrCat("; did you mean ", nearest, "?")));
}

// Whether whoever read standard output has had enough (`| head`).
bool ReaderHasGone() {
  pollfd output = {.fd = STDOUT_FILENO, .events = 0, .revents = 0};
  return poll(&output, 1, 0) == 1 && (output.revents & POLLERR) != 0;
}

// That is no failure; what a full disk does not take is one.
absl::Status FlushOutput() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return absl::OkStatus();
  if (ReaderHasGone()) return absl::OkStatus();
  if (errno != 0) return ErrnoStatus(errno, "write to", "standard output");
  return absl::DataLossError("standard output did not take everything");
}

int Main(Arguments arguments) {
  absl::Status status = Dispatch(arguments);
  if (status.ok() || IsHelpShown(status)) {
    if (const absl::Status flushed = FlushOutput(); !flushed.ok()) status = flushed;
  }
  if (status.ok() || IsHelpShown(status)) return 0;
  std::fprintf(stderr, "millrace: %s\n", std::string(status.message()).c_str());
  return IsUsageError(status) ? 2 : 1;
}

}  // namespace
}  // namespace millrace::cli

int main(int argc, char** argv) {
#ifdef NDEBUG
  // Debian's Abseil is built to watch the order of locks, as one wants it in a debug build.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
  // A write to a closed pipe fails rather than killing a process that has something to tidy up.
  signal(SIGPIPE, SIG_IGN);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return millrace::cli::Main(arguments);
}
