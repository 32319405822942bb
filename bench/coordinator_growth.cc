// How a coordinator bears many workers: a real one, in a process held to one core, leases the units of steps of 1,000
// to simulated workers that return them at once. Each is a member with a stream of heartbeats and a call for work after
// another, on two connections of its own, as real ones are. A simulated shard agrees to everything.
#include <grpcpp/grpcpp.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/processes.h"
#include "client/coordinator_client.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "common/status.h"
#include "kernels/compute.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "ps/conformance.h"
#include "worker/conformance.h"

namespace millrace::bench {
namespace {

constexpr int kCounts[] = {10, 100, 1000};
constexpr int kUnits = 1000;  // a step
constexpr int kRounds = 3;    // of all counts
constexpr absl::Duration kSettle = absl::Milliseconds(300);
constexpr absl::Duration kMeasure = absl::Seconds(1);
constexpr absl::Duration kHeartbeat = absl::Seconds(1);
constexpr double kGoal = 0.5;  // of what it leases to a tenth of them

// Holds one block and computes nothing.
class Shard final : public v1::ParameterServer::Service {
 public:
  grpc::Status Configure(grpc::ServerContext*, const v1::ConfigureRequest*, v1::ConfigureReply* reply) override {
    reply->set_blocks(1);
    return grpc::Status::OK;
  }
  grpc::Status Norms(grpc::ServerContext*, const v1::NormsRequest*, v1::NormsReply* reply) override {
    reply->add_blocks(0);
    reply->add_squared_norms(1);
    return grpc::Status::OK;
  }
  grpc::Status Commit(grpc::ServerContext*, const v1::CommitRequest* request, v1::CommitReply* reply) override {
    reply->set_version(request->version() + 1);
    return grpc::Status::OK;
  }
};

v1::TensorTable Table() {
  v1::TensorTable table;
  v1::Tensor& tensor = *table.add_tensors();
  tensor.set_name("weight");
  tensor.add_shape(4);
  tensor.set_trainable(true);
  tensor.set_role(v1::Tensor::VECTOR);
  return table;
}

// What all workers of a measurement count together. Thread-safe.
class Leases {
 public:
  // A call that brings the result of a unit of `version` is on its way.
  void Report(uint64_t version, absl::Time sent) {
    absl::MutexLock lock(&mutex_);
    reported_[version % reported_.size()] = std::max(reported_[version % reported_.size()], sent);
  }
  // A unit of `version` came for a call that was sent then. It was to be had since then, or since the last result of
  // the step before was on its way.
  void Add(uint64_t version, absl::Time sent) {
    const absl::Time now = absl::Now();
    absl::MutexLock lock(&mutex_);
    if (version > 0) sent = std::max(sent, reported_[(version - 1) % reported_.size()]);
    waits_.push_back(absl::ToDoubleMilliseconds(now - sent));
  }
  void Fail(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = status;
  }
  // Milliseconds that each unit since the last Take was waited for, or the first failure.
  absl::StatusOr<std::vector<double>> Take() {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    return std::exchange(waits_, {});
  }

 private:
  absl::Mutex mutex_;
  std::array<absl::Time, 4> reported_ ABSL_GUARDED_BY(mutex_) = {};  // by version
  std::vector<double> waits_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// Its reactions are those of the stream of heartbeats.
class SimulatedWorker final : public grpc::ClientBidiReactor<v1::Heartbeat, v1::Notice> {
 public:
  SimulatedWorker(const std::string& coordinator, Leases* leases)
      : leases_(leases),
        attends_(v1::Cluster::NewStub(NewChannel(coordinator))),
        works_(v1::Cluster::NewStub(NewChannel(coordinator))) {}

  absl::Status Join(v1::JoinRequest request) {
    grpc::ClientContext context;
    v1::JoinReply reply;
    MILLRACE_RETURN_IF_ERROR(FromGrpc(attends_->Join(&context, request, &reply)));
    heartbeat_.set_member_id(reply.member_id());
    request_.set_member_id(reply.member_id());
    request_.set_wait_ms(20'000);
    {
      absl::MutexLock lock(&mutex_);
      ++calls_;
    }
    attends_->async()->Attend(&attendance_, this);
    AddHold();  // for Beat
    StartRead(&notice_);
    StartCall();
    Beat();
    return absl::OkStatus();
  }
  void Work() {
    {
      absl::MutexLock lock(&mutex_);
      ++calls_;
    }
    Ask();
  }

  void Beat() {
    if (!beating_.exchange(true)) StartWrite(&heartbeat_);
  }
  // Ends both calls, of a worker that has joined; returns when they have ended.
  void Leave() {
    {
      absl::MutexLock lock(&mutex_);
      leaving_ = true;
      if (work_.has_value()) work_->TryCancel();
    }
    attendance_.TryCancel();
    RemoveHold();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* calls) { return *calls == 0; }, &calls_));
  }

  void OnReadDone(bool ok) override {
    if (ok) StartRead(&notice_);
  }
  void OnWriteDone(bool) override { beating_ = false; }
  void OnDone(const grpc::Status& status) override { Ended(status); }

 private:
  void Ask() {
    absl::MutexLock lock(&mutex_);
    if (leaving_) {
      --calls_;
      return;
    }
    sent_ = absl::Now();
    for (const v1::WorkResult& result : request_.results()) leases_->Report(result.version(), sent_);
    work_.emplace();
    works_->async()->NextWork(&*work_, &request_, &reply_, [this](const grpc::Status& status) {
      request_.clear_results();
      if (!status.ok()) return Ended(status);
      for (const v1::WorkUnit& unit : reply_.units()) Do(unit);
      Ask();
    });
  }

  void Do(const v1::WorkUnit& unit) {
    if (unit.kind() == v1::WorkUnit::TRAIN) leases_->Add(unit.version(), sent_);
    v1::WorkResult& result = *request_.add_results();
    result.set_lease(unit.lease());
    result.set_epoch(unit.epoch());
    result.set_kind(unit.kind());
    result.set_version(unit.version());
    result.set_unit(unit.unit());
    for (const v1::Microbatch& microbatch : unit.microbatches()) {
      result.set_predictions(result.predictions() + microbatch.rows() * (microbatch.columns() - 1));
    }
    if (unit.kind() != v1::WorkUnit::PLAN) return;
    *result.mutable_table() = Table();
    result.add_parts()->set_file("model.safetensors");
  }
  void Ended(const grpc::Status& status) {
    absl::MutexLock lock(&mutex_);
    --calls_;
    if (!leaving_) leases_->Fail(Annotate(FromGrpc(status), "a call ended"));
  }

  Leases* const leases_;
  const std::unique_ptr<v1::Cluster::Stub> attends_, works_;
  v1::Heartbeat heartbeat_;
  v1::Notice notice_;
  std::atomic<bool> beating_ = false;
  grpc::ClientContext attendance_;
  // Of the call for work under way.
  v1::NextWorkRequest request_;
  v1::NextWorkReply reply_;
  absl::Time sent_;

  absl::Mutex mutex_;
  std::optional<grpc::ClientContext> work_ ABSL_GUARDED_BY(mutex_);
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;  // open
};

// Members of the cluster, and a thread that has each speak once a heartbeat, not all at once.
class SimulatedWorkers {
 public:
  // Has them all join, and then work.
  static absl::StatusOr<std::unique_ptr<SimulatedWorkers>> Start(const std::string& coordinator, int count,
                                                                 Leases* leases) {
    v1::JoinRequest request;
    request.set_role(v1::WORKER);
    request.set_conformance_digest(worker::ConformanceDigest(kernels::Compute(kernels::DetectIsa(), 1)));
    auto all = std::make_unique<SimulatedWorkers>();
    for (int i = 0; i < count; ++i) {
      request.set_name(absl::StrCat("simulated-", i, "-of-", count));
      auto worker = std::make_unique<SimulatedWorker>(coordinator, leases);
      MILLRACE_RETURN_IF_ERROR(worker->Join(request));
      all->workers_.push_back(std::move(worker));
    }
    all->heart_ = std::thread([&ended = all->ended_, &workers = all->workers_] {
      const absl::Duration pause = kHeartbeat / static_cast<int64_t>(workers.size());
      for (size_t i = 0; !ended.WaitForNotificationWithTimeout(pause); ++i) workers[i % workers.size()]->Beat();
    });
    for (const auto& worker : all->workers_) worker->Work();
    return all;
  }
  ~SimulatedWorkers() {
    ended_.Notify();
    if (heart_.joinable()) heart_.join();
    for (const auto& worker : workers_) worker->Leave();
  }

 private:
  std::vector<std::unique_ptr<SimulatedWorker>> workers_;
  absl::Notification ended_;
  std::thread heart_;
};

// Holds every thread that this process has to `cores`.
void HoldThreads(const cpu_set_t& cores) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    pid_t thread = 0;
    if (absl::SimpleAtoi(task.path().filename().string(), &thread)) sched_setaffinity(thread, sizeof(cores), &cores);
  }
}

// The first core that this process may use is another's as long as this lives, if there are more.
class LentCore {
 public:
  LentCore() {
    sched_getaffinity(0, sizeof(all_), &all_);
    CPU_ZERO(&lent_);
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&lent_) == 0; ++core) {
      if (CPU_ISSET(core, &all_)) CPU_SET(core, &lent_);
    }
  }
  ~LentCore() { HoldThreads(all_); }
  // `start`s a process there.
  absl::StatusOr<Role> Start(absl::FunctionRef<absl::StatusOr<Role>()> start) {
    sched_setaffinity(0, sizeof(lent_), &lent_);  // a child inherits it
    absl::StatusOr<Role> role = start();
    cpu_set_t others = all_;
    if (CPU_COUNT(&all_) > 1) CPU_XOR(&others, &all_, &lent_);
    HoldThreads(others);
    return role;
  }

 private:
  cpu_set_t all_, lent_;
};

}  // namespace

absl::Status BenchCoordinatorGrowth(const Machine& machine, Report* report) {
  const TemporaryFolder folder;
  const std::string text = folder.path() + "/text.txt";
  constexpr Model kModel = {"", 1, 8, 1, 8, 1, 65};
  MILLRACE_RETURN_IF_ERROR(WriteRandomText(text, kModel, 100'000));
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(kModel, text, kernels::Precision::kF32, kUnits, 1));
  LentCore core;
  MILLRACE_ASSIGN_OR_RETURN(const Role coordinator, core.Start([&] {
    return StartRole({machine.program, "coordinator", "--dir", folder.path()}, "coordinator", folder.path(), true);
  }));
  Shard shard;
  GrpcServerOptions serving;
  serving.listen = "127.0.0.1:0";
  serving.services = {&shard};
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server, GrpcServer::Start(serving));
  client::Membership::Options membership;
  membership.coordinator = coordinator.address;
  membership.join.set_role(v1::SHARD);
  membership.join.set_name("simulated");
  membership.join.set_address(server->address());
  membership.join.set_conformance_digest(ps::ConformanceDigest());
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<client::Membership> member,
                            client::Membership::Join(std::move(membership), nullptr));
  client::CoordinatorClient client(coordinator.address);
  v1::SubmitJobRequest request;
  *request.mutable_spec() = job;
  request.set_base_directory("/");
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job submitted, client.SubmitJob(request));
  Leases leases;
  std::vector<double> rates[std::size(kCounts)], waits[std::size(kCounts)];
  double megabytes[std::size(kCounts)] = {};
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < std::size(kCounts); ++i) {
      MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<SimulatedWorkers> workers,
                                SimulatedWorkers::Start(coordinator.address, kCounts[i], &leases));
      absl::SleepFor(kSettle);
      MILLRACE_RETURN_IF_ERROR(leases.Take().status());
      const absl::Time begun = absl::Now();
      absl::SleepFor(kMeasure);
      MILLRACE_ASSIGN_OR_RETURN(const std::vector<double> waited, leases.Take());
      rates[i].push_back(static_cast<double>(waited.size()) / absl::ToDoubleSeconds(absl::Now() - begun));
      if (waited.empty()) {
        MILLRACE_ASSIGN_OR_RETURN(const v1::Job job, client.GetJob(submitted.id()));
        return absl::UnavailableError(absl::StrCat("the coordinator leases nothing; the job: ", job.error()));
      }
      waits[i].insert(waits[i].end(), waited.begin(), waited.end());
      // Later the peak is that of the most workers.
      if (round == 0) megabytes[i] = PeakMegabytes(coordinator.process->pid());
    }
  }
  for (size_t i = 0; i < std::size(kCounts); ++i) {
    const auto p99 = waits[i].begin() + static_cast<std::ptrdiff_t>(waits[i].size() * 99 / 100);
    std::nth_element(waits[i].begin(), p99, waits[i].end());
    const std::string name = absl::StrCat("growth/coordinator/", kCounts[i], "-workers");
    const double rate = Median(rates[i]), limit = i > 0 ? rate / MedianRatio(rates[i], rates[i - 1]) : 0;
    report->Add({name + "/leases", rate, "units/s", limit, i > 0 ? kGoal : 0});
    report->Add({name + "/p99", *p99, "ms"});
    report->Add({name + "/memory", megabytes[i], "MiB"});
  }
  return client.CancelJob(submitted.id()).status();
}

}  // namespace millrace::bench
