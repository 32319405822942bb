#include "coordinator/coordinator.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/access.h"
#include "common/audit_log.h"
#include "common/files.h"
#include "common/grpc_server.h"
#include "common/health.h"
#include "common/http_server.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status.h"
#include "common/tokens.h"
#include "coordinator/cluster_service.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/data_roots.h"
#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "coordinator/job_runner.h"
#include "coordinator/job_store.h"
#include "coordinator/jobs_service.h"
#include "coordinator/members.h"
#include "coordinator/page_http.h"
#include "coordinator/rating_store.h"
#include "coordinator/ratings_http.h"
#include "coordinator/ratings_service.h"
#include "coordinator/remote_fleet.h"
#include "coordinator/sweeps.h"
#include "coordinator/work_board.h"

namespace millrace::coordinator {
namespace {

// How often overdue leases, silent members and events to be written are looked for.
constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr absl::Duration kFlush = absl::Seconds(1);
constexpr absl::Duration kGrace = absl::Seconds(2);

// Held by one coordinator a directory, as long as its process lives.
class DirectoryLock {
 public:
  static absl::StatusOr<std::unique_ptr<DirectoryLock>> Take(const std::string& directory) {
    const std::string path = absl::StrCat(directory, "/coordinator.lock");
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) return ErrnoStatus(errno, "write", path);
    std::unique_ptr<DirectoryLock> lock(new DirectoryLock(file));
    if (flock(file, LOCK_EX | LOCK_NB) != 0) {
      return absl::FailedPreconditionError(absl::StrCat("another coordinator works in ", directory));
    }
    return lock;
  }
  ~DirectoryLock() { close(file_); }

 private:
  explicit DirectoryLock(int file) : file_(file) {}
  const int file_;
};

class Coordinator {
 public:
  explicit Coordinator(const CoordinatorOptions& options)
      : options_(options),
        metrics_(&registry_),
        fleets_(options.tls == nullptr ? nullptr : options.tls->ForChannels(Role::kShard)),
        members_(MembersOptions()) {}

  absl::Status Run() {
    MILLRACE_RETURN_IF_ERROR(CheckListen(options_.listen, options_.tls != nullptr, options_.plaintext));
    MILLRACE_ASSIGN_OR_RETURN(const DataRoots roots, OpenRoots());
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<HealthServer> health, HealthServer::Start(options_.health_listen));
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory_));
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<DirectoryLock> lock, DirectoryLock::Take(directory_));
    MILLRACE_ASSIGN_OR_RETURN(store_, JobStore::Open(absl::StrCat(directory_, "/coordinator.sqlite")));
    MILLRACE_ASSIGN_OR_RETURN(book_, JobBook::Open(store_.get()));
    MILLRACE_ASSIGN_OR_RETURN(ratings_, RatingStore::Open(absl::StrCat(directory_, "/ratings.sqlite")));
    MILLRACE_RETURN_IF_ERROR(registry_.Serve(options_.metrics_listen));

    JobQueue::Options queueing;
    queueing.directory = directory_;
    queueing.book = book_.get();
    queueing.jobs_per_user = options_.jobs_per_user;
    queueing.run = [this, &roots](const StoredJob& job, const JobControl& control) -> absl::StatusOr<JobOutcome> {
      // Again: what paths lead to may have changed since the job came, and only now are all files looked for.
      MILLRACE_RETURN_IF_ERROR(roots.Check(job.job.spec(), job.base_directory, DataRoots::Depth::kFiles));
      return RunAndTime(job, control);
    };
    queueing.forget = [this](const std::string& job_id) { return ratings_->RemoveSetsOf(job_id); };
    queueing.wake = [this] {
      members_.Wake();
      board_.Wake();
    };
    queueing.check = [&roots](const StoredJob& job) {
      return roots.Check(job.job.spec(), job.base_directory, DataRoots::Depth::kPaths);
    };
    JobQueue queue(std::move(queueing));
    ClusterService cluster(&members_, &board_, options_.units_per_call);
    cluster_ = &cluster;
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Sweeps> sweeps, Sweeps::Open(store_.get(), book_.get(), &queue));
    sweeps_ = sweeps.get();
    JobsService::Parts served;
    served.directory = directory_;
    served.queue = &queue;
    served.book = book_.get();
    served.sweeps = sweeps.get();
    served.members = &members_;
    served.wanted_shards = options_.shards;
    JobsService jobs(served);
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Access> access, OpenAccess());
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> page, ServePages(&jobs, access.get()));
    RatingsService ratings(ratings_.get(), page_address_);
    GrpcServerOptions serving;
    serving.listen = options_.listen;
    serving.address_file = options_.address_file;
    serving.services = {&cluster, &jobs, &ratings};
    serving.access = access.get();
    if (options_.tls != nullptr) serving.credentials = options_.tls->ForServers();
    TellExpiry(options_.tls.get(), &registry_);
    if (!options_.metrics_listen.empty()) serving.metrics = &registry_;
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server, GrpcServer::Start(serving));
    Log(Severity::kInfo, "serves", {{"address", server->address()}, {"directory", directory_}});

    health->SetReady(true);

    absl::Notification ended;
    std::thread ticker([&] { Tick(&ended); });
    std::thread stopper([&] {
      options_.stop->WaitForNotification();
      health->SetReady(false);
      queue.Stop();
      page.reset();
    });
    queue.Run();
    jobs.Close();
    cluster.Close();
    server->Shutdown(kGrace);
    ended.Notify();
    ticker.join();
    stopper.join();
    return Annotate(book_->Flush(), "writing the last events");
  }

 private:
  Members::Options MembersOptions() {
    Members::Options options;
    options.worker_conformance_digest = options_.worker_conformance_digest;
    options.shard_conformance_digest = options_.shard_conformance_digest;
    options.heartbeat = options_.heartbeat;
    options.lease = options_.lease;
    options.on_join = [this](const Member& member) {
      if (member.role == v1::WORKER) board_.Admit(member.id);
      Log(Severity::kInfo, "joined",
          {{"member", member.id},
           {"name", member.name},
           {"address", member.address},
           {"processor", member.processor},
           {"threads", member.threads}});
    };
    options.on_loss = [this](const Member& member, absl::string_view why) {
      metrics_.CountLost(member.role);
      Log(Severity::kInfo, "gone", {{"member", member.id}, {"name", member.name}, {"why", why}});
      if (member.role == v1::WORKER) {
        board_.Dismiss(member.id);
      } else {
        fleets_.Lose(member.address);
      }
      // The runner looks whether it can go on.
      board_.Wake();
    };
    options.on_leaving = [this](const Member& member) {
      Log(Severity::kInfo, "leaves", {{"member", member.id}, {"name", member.name}, {"address", member.address}});
      // The runner brings its job to safety.
      board_.Wake();
    };
    return options;
  }

  absl::StatusOr<DataRoots> OpenRoots() const {
    if (options_.data_roots.empty() && !IsLoopback(options_.listen)) {
      return absl::FailedPreconditionError(
          absl::StrCat("--listen ", options_.listen,
                       " lets others send jobs, which could read all files that this "
                       "process may: give --data-root DIR for what they may read (/ for everything)"));
    }
    return DataRoots::Open(options_.data_roots, directory_);
  }

  absl::StatusOr<std::unique_ptr<Access>> OpenAccess() {
    AccessOptions options;
    options.metrics = &registry_;
    if (!options_.tokens_file.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(options.tokens, Tokens::Open(options_.tokens_file));
    }
    MILLRACE_ASSIGN_OR_RETURN(options.audit, AuditLog::Open(absl::StrCat(directory_, "/audit.jsonl")));
    return std::make_unique<Access>(std::move(options));
  }

  // Null if no pages are wanted.
  absl::StatusOr<std::unique_ptr<HttpServer>> ServePages(JobsService* jobs, Access* access) {
    if (options_.http_listen.empty()) return nullptr;
    std::string token;
    if (!options_.http_token_file.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(token, ReadHttpToken(options_.http_token_file));
    }
    PageHttp::Parts parts;
    parts.directory = directory_;
    parts.jobs = jobs;
    parts.book = book_.get();
    parts.access = access;
    // Whoever has to show a certificate elsewhere shall not get around it here.
    parts.is_loopback = IsLoopback(options_.http_listen);
    parts.for_this_machine = parts.is_loopback && options_.tls == nullptr;
    parts.raters_have_token = !token.empty();
    parts.prompt = options_.prompt;
    rating_requests_ = std::make_unique<RatingsHttp>(ratings_.get(), std::move(token), &absl::Now);
    parts.ratings = rating_requests_.get();
    pages_ = std::make_unique<PageHttp>(std::move(parts));
    HttpServerOptions serving;
    serving.listen = options_.http_listen;
    serving.max_body_bytes = kMaxPageBodyBytes;
    serving.answer = [this](const HttpRequest& request) { return pages_->Answer(request); };
    serving.refuse = &RatingsHttp::Refuse;
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> server, HttpServer::Start(std::move(serving)));
    page_address_ = server->address();
    Log(Severity::kInfo, "serves the pages", {{"address", page_address_}});
    return server;
  }

  RunnerParts Parts() {
    RunnerParts parts;
    parts.directory = directory_;
    parts.shards = options_.shards;
    parts.book = book_.get();
    parts.store = store_.get();
    parts.members = &members_;
    parts.board = &board_;
    parts.connect = [this](uint64_t epoch, const std::vector<std::string>& addresses) {
      return fleets_.Connect(epoch, addresses);
    };
    parts.on_evaluation = [this] { sweeps_->Tick(); };
    parts.announce = [this](uint64_t epoch) {
      metrics_.epoch->Set(static_cast<double>(epoch));
      cluster_->Announce(epoch);
    };
    parts.metrics = &metrics_;
    parts.ratings = ratings_.get();
    parts.rating_page = page_address_;
    return parts;
  }

  absl::StatusOr<JobOutcome> RunAndTime(const StoredJob& job, const JobControl& control) {
    if (job.job.started_unix_ms() == 0) {
      const absl::Duration waited = absl::Now() - absl::FromUnixMillis(job.job.submitted_unix_ms());
      metrics_.queue_duration->Observe(std::max(0.0, absl::ToDoubleSeconds(waited)));
    }
    absl::StatusOr<JobOutcome> outcome = RunJob(job, Parts(), control);
    metrics_.EndJob(job.job.id(), absl::Now());
    return outcome;
  }

  // Until `ended`: what only time tells.
  void Tick(const absl::Notification* ended) {
    metrics_.required_shards->Set(options_.shards);
    CountUp();
    absl::Time next_flush = absl::Now() + kFlush;
    while (!ended->WaitForNotificationWithTimeout(kTick)) {
      const absl::Time now = absl::Now();
      for (const std::string& id : members_.Expire(now)) cluster_->Dismiss(id, "silent for longer than its lease");
      board_.Tick();
      if (now < next_flush) continue;
      next_flush = now + kFlush;
      sweeps_->Tick();
      if (const absl::Status flushed = book_->Flush(); !flushed.ok()) {
        Log(Severity::kError, "events could not be written", {{"error", std::string(flushed.message())}});
      }
      CountUp();
      TellExpiry(options_.tls.get(), &registry_);
    }
  }

  void CountUp() {
    metrics_.workers->Set(static_cast<double>(members_.Living(v1::WORKER).size()));
    metrics_.shards->Set(static_cast<double>(members_.Living(v1::SHARD).size()));
    std::map<v1::Job::State, uint64_t> jobs;
    for (const v1::Job& job : book_->List()) ++jobs[job.state()];
    metrics_.SetJobs(jobs);
    metrics_.SetDisk(directory_);
    metrics_.DropEnded(absl::Now());
    const WorkBoard::Counts counts = board_.counts();
    const auto raise = [](prometheus::Counter* counter, uint64_t to) {
      counter->Increment(static_cast<double>(to) - counter->Value());
    };
    for (const auto& [state, count] : book_->Endings()) raise(metrics_.Finished(state), count);
    raise(metrics_.units_accepted, counts.accepted);
    raise(metrics_.units_repeated, counts.repeated);
    raise(metrics_.units_stale, counts.stale);
    raise(metrics_.units_failed, counts.failed);
    raise(metrics_.units_freed, counts.freed);
  }

  const CoordinatorOptions options_;
  const std::string directory_ = std::filesystem::absolute(options_.directory).lexically_normal().string();
  Metrics registry_;
  CoordinatorMetrics metrics_;
  WorkBoard board_;
  RemoteFleets fleets_;
  Members members_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobBook> book_;
  std::unique_ptr<RatingStore> ratings_;
  std::string page_address_;  // of the pages; empty: not served
  std::unique_ptr<RatingsHttp> rating_requests_;
  std::unique_ptr<PageHttp> pages_;
  ClusterService* cluster_ = nullptr;
  Sweeps* sweeps_ = nullptr;
};

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options) { return Coordinator(options).Run(); }

}  // namespace millrace::coordinator
