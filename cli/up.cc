// millrace up: a local cluster that stays.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/local_cluster.h"
#include "cli/page_flags.h"
#include "cli/page_address.h"
#include "cli/stop_signal.h"
#include "common/process.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

absl::Status TellHowToUse(const std::string& address, const std::string& directory, const PageFlags& page) {
  const std::string where =
      directory == kDefaultClusterDirectory ? std::string() : absl::StrCat(" --dir ", directory);
  std::printf("coordinator: %s; logs in %s/logs\n", address.c_str(), directory.c_str());
  if (!page.http.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string link, PageAddress(address));
    std::printf("dashboard: %s\nrating page: %srate\n", link.c_str(), link.c_str());
  }
  std::printf("  millrace submit JOB.yaml --watch%s\n  millrace down%s\n", where.c_str(), where.c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

// Starts `millrace up` without --detach as a process that outlives this one, and waits until its coordinator serves.
absl::Status Detach(Arguments arguments, const std::string& directory, const PageFlags& page) {
  ChildProcess::Options options;
  MILLRACE_ASSIGN_OR_RETURN(const std::string program, OwnProgram());
  options.arguments = {program, "up"};
  for (const std::string& argument : arguments) {
    if (argument != "--detach") options.arguments.push_back(argument);
  }
  std::error_code error;
  std::filesystem::create_directories(absl::StrCat(directory, "/logs"), error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot make ", directory, "/logs: ", error.message()));
  options.log_file = absl::StrCat(directory, "/logs/up.log");
  options.dies_with_parent = false;
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> child, ChildProcess::Start(options));
  for (;;) {
    const absl::StatusOr<RunningCluster> running = FindRunningCluster(directory);
    // Its processes are listed once they were started, the coordinator first.
    if (running.ok() && running->supervisor == child->pid() && running->processes.size() > 1) {
      return TellHowToUse(running->coordinator, directory, page);
    }
    if (const std::optional<Ending> ending = child->Wait(absl::Now() + absl::Milliseconds(20)); ending.has_value()) {
      return absl::UnavailableError(absl::StrCat("the cluster ", ending->Describe(), "; ", options.log_file,
                                                 " ends:\n", LogTail(options.log_file, 5)));
    }
  }
}

}  // namespace

absl::Status RunUp(Arguments arguments) {
  std::string directory = kDefaultClusterDirectory, listen = "127.0.0.1:0", max_isa;
  int64_t workers = 1, shards = 1, threads = 0;
  double lease = 10;
  bool detach = false, plaintext = false;
  std::vector<std::string> data_roots;
  PageFlags page;
  Flags flags("up", "Starts a local cluster that stays, for jobs submitted to it. Ctrl-C or `millrace down` stops it.",
              "--workers 2 --shards 2 --detach");
  flags.Integer("workers", "N", "worker processes", &workers, 1, 1024);
  flags.Integer("shards", "M", "parameter-server processes", &shards, 1, 1024);
  flags.Integer("threads", "T", "threads of each worker; 0: this machine's cores shared out", &threads, 0, 1024);
  flags.Text("dir", "DIR", "folder of the cluster's files", &directory);
  flags.Text("listen", "HOST:PORT", "where the coordinator serves; port 0: any", &listen);
  flags.Text("max-isa", "ISA[,ISA…]", "instruction sets to hold the workers to, in turn: scalar, avx2, avx512, avx512_bf16",
             &max_isa);
  flags.Number("lease", "SECONDS", "silence after which a process counts as lost", &lease, 0.1, 3600);
  flags.Switch("plaintext", "lets others than this machine come: nothing is encrypted, nobody is asked who they are",
               &plaintext);
  flags.List("data-root", "DIR", "jobs may read what lies in it, and nothing outside; several may be given", &data_roots);
  page.Declare(&flags);
  flags.Switch("detach", "returns once the cluster stands", &detach);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_RETURN_IF_ERROR(page.Check());
  if (detach) {
    if (FindRunningCluster(directory).ok()) {
      return absl::AlreadyExistsError(absl::StrCat("a cluster runs in ", directory, " already"));
    }
    return Detach(arguments, directory, page);
  }

  StopSignal stop;
  LocalClusterOptions options;
  MILLRACE_ASSIGN_OR_RETURN(options.program, OwnProgram());
  options.directory = directory;
  options.shards = static_cast<int>(shards);
  options.workers = static_cast<int>(workers);
  options.threads = static_cast<int>(threads);
  if (!max_isa.empty()) options.max_isas = absl::StrSplit(max_isa, ',');
  options.listen = listen;
  options.http = page.http;
  options.http_token_file = page.token_file;
  options.plaintext = plaintext;
  options.data_roots = data_roots;
  options.lease_seconds = lease;
  options.say = [](absl::string_view text) { std::fprintf(stderr, "%s\n", std::string(text).c_str()); };
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalCluster> cluster, LocalCluster::Start(std::move(options)));
  cluster->StartMembers();
  MILLRACE_RETURN_IF_ERROR(TellHowToUse(cluster->coordinator(), directory, page));
  stop.Tell([&cluster] { cluster->Wake(); });
  cluster->Await([&stop] { return stop.asked(); });
  stop.Tell(nullptr);
  cluster->Stop();
  return Annotate(cluster->status(), "the cluster is given up");
}

}  // namespace millrace::cli
