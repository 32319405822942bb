// millrace train: a local cluster, one job, its progress, the end.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/job_view.h"
#include "cli/local_cluster.h"
#include "cli/page_flags.h"
#include "cli/page_address.h"
#include "cli/stop_signal.h"
#include "cli/submission.h"
#include "client/coordinator_client.h"
#include "common/process.h"
#include "common/progress.h"
#include "common/status.h"
#include "google/protobuf/util/message_differencer.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

// The first difference between a job file and the job that a folder was started with; empty: none.
std::string Difference(const v1::JobSpec& started, const v1::JobSpec& now) {
  std::string report;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&report);
  if (differencer.Compare(started, now)) return "";
  return report.substr(0, report.find('\n'));
}

// The job of this name in the coordinator's book that was submitted last; absent: none.
absl::StatusOr<std::optional<v1::Job>> FindJob(client::CoordinatorClient* coordinator, const std::string& name) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<v1::Job> jobs, coordinator->ListJobs());
  std::optional<v1::Job> found;
  for (const v1::Job& job : jobs) {
    if (job.spec().name() == name) found = job;
  }
  return found;
}

// Finds or submits the job and has it go on.
absl::StatusOr<v1::Job> EnterJob(client::CoordinatorClient* coordinator, const v1::SubmitJobRequest& request,
                                 const std::string& directory) {
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<v1::Job> job, FindJob(coordinator, request.spec().name()));
  if (!job.has_value()) return coordinator->SubmitJob(request);
  if (const std::string difference = Difference(job->spec(), request.spec()); !difference.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the job file is not the one that ", directory, " was started with (", difference,
                     "); train it in another --dir, or resume with the former one"));
  }
  if (job->state() == v1::Job::SUCCEEDED) return *job;
  return coordinator->ResumeJob(job->id());
}

// Shows the job's events from now on until it has ended or rests, or the watching is interrupted.
void Watch(client::CoordinatorClient* coordinator, const std::string& job_id, int64_t since_unix_ms, JobView* view,
           absl::Status* status) {
  *status = coordinator->WatchJob(job_id, 0, [&](const v1::JobEvent& event) {
    if (event.unix_ms() < since_unix_ms) return true;
    view->Show(event);
    return !(event.has_state() && event.state().state() == v1::Job::PAUSED);
  });
}

}  // namespace

absl::Status RunTrain(Arguments arguments) {
  std::string job_file, directory, max_isa;
  std::vector<std::string> overrides;
  int64_t workers = 1, shards = 1, threads = 0;
  double lease = 10;
  bool resume = false;
  PageFlags page;
  Flags flags("train", "Trains a job on a local cluster of its own: shows the progress, ends with the job.",
              "examples/tiny.yaml --workers 2 --shards 2 --dir runs/tiny");
  flags.Positional("JOB.yaml", "the job file (docs/job-file.md)", &job_file).Required();
  flags.Integer("workers", "N", "worker processes", &workers, 1, 1024);
  flags.Integer("shards", "M", "parameter-server processes", &shards, 1, 1024);
  flags.Integer("threads", "T", "threads of each worker; 0: this machine's cores shared out", &threads, 0, 1024);
  flags.Text("dir", "DIR", "folder of the cluster's files; default runs/NAME", &directory);
  flags.Switch("resume", "goes on with the job in DIR", &resume);
  flags.List("set", "FIELD=VALUE", "replaces a field of the job file, as in phases.0.stop.max_steps=20", &overrides);
  flags.Text("max-isa", "ISA[,ISA…]", "instruction sets to hold the workers to, in turn: scalar, avx2, avx512, avx512_bf16",
             &max_isa);
  flags.Number("lease", "SECONDS", "silence after which a process counts as lost", &lease, 0.1, 3600);
  page.Declare(&flags);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_RETURN_IF_ERROR(page.Check());
  MILLRACE_ASSIGN_OR_RETURN(const v1::SubmitJobRequest request, ReadSubmission(job_file, overrides));
  if (directory.empty()) directory = absl::StrCat("runs/", request.spec().name());

  const bool started_before = fs::exists(absl::StrCat(directory, "/coordinator.sqlite"));
  if (resume && !fs::exists(directory)) {
    return absl::NotFoundError(absl::StrCat("there is nothing to resume: ", directory, " does not exist"));
  }
  if (!resume && started_before) {
    return absl::AlreadyExistsError(absl::StrCat(directory, " holds a job already: --resume goes on with it (or shows "
                                                 "how it ended), --dir DIR starts another"));
  }
  const std::string again = absl::StrCat("millrace train ", job_file, " --dir ", directory, " --resume");

  StopSignal stop;
  ProgressLine line(stdout, isatty(STDOUT_FILENO) != 0);
  LocalClusterOptions options;
  MILLRACE_ASSIGN_OR_RETURN(options.program, OwnProgram());
  options.directory = directory;
  options.shards = static_cast<int>(shards);
  options.workers = static_cast<int>(workers);
  options.threads = static_cast<int>(threads);
  if (!max_isa.empty()) options.max_isas = absl::StrSplit(max_isa, ',');
  options.http = page.http;
  options.http_token_file = page.token_file;
  options.lease_seconds = lease;
  options.say = [](absl::string_view text) { std::fprintf(stderr, "%s\n", std::string(text).c_str()); };
  const int64_t since = absl::ToUnixMillis(absl::Now());
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalCluster> cluster, LocalCluster::Start(std::move(options)));
  client::CoordinatorClient coordinator(cluster->coordinator());
  MILLRACE_ASSIGN_OR_RETURN(v1::Job job, EnterJob(&coordinator, request, directory));

  if (job.state() != v1::Job::SUCCEEDED) {
    line.Print(absl::StrCat("cluster: coordinator ", cluster->coordinator(), ", ", shards, " shard",
                            shards == 1 ? "" : "s", ", ", workers, " worker", workers == 1 ? "" : "s", "; logs in ",
                            directory, "/logs"));
    if (!page.http.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(const std::string link, PageAddress(cluster->coordinator()));
      line.Print(absl::StrCat("rating page: ", link, "rate"));
    }
    cluster->StartMembers();
    JobView view(&line);
    absl::Status watched;
    std::atomic<bool> watched_to_end = false;
    std::thread watcher([&] {
      Watch(&coordinator, job.id(), since, &view, &watched);
      watched_to_end = true;
      cluster->Wake();
    });
    stop.Tell([&cluster] { cluster->Wake(); });
    cluster->Await([&] { return watched_to_end.load() || stop.asked(); });
    stop.Tell(nullptr);
    coordinator.InterruptWatching();
    watcher.join();
    if (stop.asked() && !watched_to_end) {
      line.Print("stopping after a checkpoint; once more stops at once");
      cluster->Stop();
      return absl::CancelledError(absl::StrCat("stopped; `", again, "` goes on"));
    }
    MILLRACE_RETURN_IF_ERROR(Annotate(cluster->status(), "the local cluster is given up"));
    if (!absl::IsCancelled(watched)) MILLRACE_RETURN_IF_ERROR(watched);
    MILLRACE_ASSIGN_OR_RETURN(job, coordinator.GetJob(job.id()));
  }
  const std::string checkpoints = absl::StrCat(directory, "/jobs/", job.id(), "/checkpoints/");
  cluster->Stop();
  switch (job.state()) {
    case v1::Job::SUCCEEDED:
      line.Print(absl::StrCat("\n", Summary(job), "  checkpoint          ", checkpoints, "best\n\n",
                              NextCommands("millrace", job.spec().model().family(),
                                           absl::StrCat(checkpoints, "best"))));
      return absl::OkStatus();
    case v1::Job::PAUSED:
      return absl::CancelledError(absl::StrCat("job ", job.id(), " was paused; `", again, "` goes on"));
    case v1::Job::CANCELLED:
      return absl::CancelledError(absl::StrCat("job ", job.id(), " was cancelled; `", again, "` takes it up again"));
    default:
      return absl::InternalError(absl::StrCat("job ", job.id(), " failed: ", job.error(), "\n`", again,
                                              "` goes on from its last checkpoint"));
  }
}

}  // namespace millrace::cli
