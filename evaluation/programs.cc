#include "evaluation/programs.h"

#include <poll.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/process.h"
#include "common/status.h"

namespace millrace::evaluation {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxWritten = uint64_t{64} << 20;
constexpr size_t kShownOutput = 4096;

// Whether the child has ended by the deadline. It is not waited for: its number, which is that of its group, stays its.
bool EndsBy(const ChildProcess& child, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = std::max(absl::ZeroDuration(), deadline - absl::Now());
    pollfd ended = {.fd = child.descriptor(), .events = POLLIN, .revents = 0};
    const int ready =
        poll(&ended, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Minutes(1)))) + 1);
    if (ready > 0) return true;
    if (left == absl::ZeroDuration()) return false;
  }
}

std::string BeginningOf(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(kShownOutput, '\0');
  stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<size_t>(stream.gcount()));
  return bytes;
}

}  // namespace

absl::StatusOr<TrialOutcome> RunTrial(const Trial& trial) {
  std::error_code error;
  const fs::path temporary = fs::temp_directory_path(error);
  if (error) return absl::FailedPreconditionError("there is no folder for temporary files; TMPDIR names one");
  std::string base = (temporary / "millrace-trial-XXXXXX").string();
  if (mkdtemp(base.data()) == nullptr) return ErrnoStatus(errno, "make a folder", base);
  const auto removed = absl::MakeCleanup([&base] {
    std::error_code ignored;
    fs::remove_all(base, ignored);
  });
  // The output lies beside the program's folder, not in it.
  const std::string folder = absl::StrCat(base, "/work"), output = absl::StrCat(base, "/output");
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(folder));
  {
    const std::string path = absl::StrCat(folder, "/", trial.file);
    std::ofstream stream(path, std::ios::binary);
    stream << trial.source;
    stream.close();
    if (!stream) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> child,
                            ChildProcess::Start({.arguments = trial.arguments,
                                                 .log_file = output,
                                                 .directory = folder,
                                                 .max_memory = trial.max_memory,
                                                 .max_written = kMaxWritten}));
  const bool ended = EndsBy(*child, absl::Now() + trial.time_limit);
  const Ending ending = child->KillGroup();
  TrialOutcome outcome;
  outcome.passed = ended && ending.well();
  outcome.ending =
      ended ? ending.Describe() : absl::StrCat("was killed after ", absl::ToDoubleSeconds(trial.time_limit), " s");
  outcome.output = BeginningOf(output);
  return outcome;
}

}  // namespace millrace::evaluation
