#include "bench/processes.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/local_cluster.h"
#include "common/status.h"

namespace millrace::bench {

TemporaryFolder::TemporaryFolder() {
  if (mkdtemp(path_.data()) == nullptr) std::abort();
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<Role> StartRole(std::vector<std::string> command, const std::string& name, const std::string& folder,
                               bool serves) {
  const std::string address_file = absl::StrCat(folder, "/", name, ".address");
  ChildProcess::Options options;
  options.arguments = std::move(command);
  if (serves) {
    options.arguments.push_back("--address-file");
    options.arguments.push_back(address_file);
  }
  options.log_file = absl::StrCat(folder, "/", name, ".log");
  Role role;
  MILLRACE_ASSIGN_OR_RETURN(role.process, ChildProcess::Start(options));
  while (serves && !(std::ifstream(address_file) >> role.address)) {
    if (!role.process->Wait(absl::Now() + absl::Milliseconds(10)).has_value()) continue;
    return absl::UnavailableError(absl::StrCat(name, " ended:\n", cli::LogTail(options.log_file, 5)));
  }
  return role;
}

double PeakMegabytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string word; status >> word;) {
    double kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes / 1024;
  }
  return 0;
}

}  // namespace millrace::bench
