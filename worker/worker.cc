#include "worker/worker.h"

#include <malloc.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/coordinator_client.h"
#include "common/health.h"
#include "common/log.h"
#include "common/machine.h"
#include "common/status.h"
#include "worker/conformance.h"
#include "worker/phase.h"
#include "worker/worker_metrics.h"

namespace millrace::worker {
namespace {

constexpr uint32_t kWaitMs = 20'000;
constexpr absl::Duration kShortestDelay = absl::Milliseconds(20);
constexpr absl::Duration kLongestDelay = absl::Seconds(2);
// How long the unit at hand may take once the worker is asked to leave.
constexpr absl::Duration kGrace = absl::Seconds(5);
// How often it is looked when the own certificate ends.
constexpr absl::Duration kTellExpiry = absl::Seconds(10);

// A step's coded gradients come and go. Left alone, the heap gives their memory back each time: in a trial a push
// through shared memory took twice as long.
void KeepHeap() {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // above a block of gradients
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

Endpoint CoordinatorOf(const WorkerOptions& options) {
  return Endpoint(options.coordinator, options.tls == nullptr ? nullptr : options.tls->ForChannels(Role::kCoordinator));
}

class Worker {
 public:
  explicit Worker(const WorkerOptions& options)
      : options_(options),
        compute_(options.max_isa, options.threads),
        seat_(&compute_, options.share_memory,
              options.tls == nullptr ? nullptr : options.tls->ForChannels(Role::kShard)),
        metrics_(options.metrics_listen),
        coordinator_(CoordinatorOf(options)) {}

  absl::Status Run() {
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<HealthServer> health, HealthServer::Start(options_.health_listen));
    MILLRACE_RETURN_IF_ERROR(metrics_.Serve());
    metrics_.TellPeaks(compute_);
    client::Membership::Options membership;
    membership.coordinator = CoordinatorOf(options_);
    membership.join.set_role(v1::WORKER);
    membership.join.set_name(options_.name);
    membership.join.set_conformance_digest(ConformanceDigest(compute_));
    membership.join.set_build(BuildDescription());
    membership.join.set_processor(absl::StrCat(ProcessorName(), "; ", kernels::IsaName(compute_.isa())));
    membership.join.set_threads(static_cast<uint32_t>(compute_.threads()));
    membership.on_epoch = [this](uint64_t epoch) { seat_.Announce(epoch); };
    membership.resident_bytes = &ResidentBytes;
    absl::StatusOr<std::unique_ptr<client::Membership>> joined =
        client::Membership::Join(std::move(membership), options_.stop);
    if (absl::IsCancelled(joined.status()) && Stopping()) return absl::OkStatus();
    if (!joined.ok()) return joined.status();
    membership_ = *std::move(joined);
    Log(Severity::kInfo, "joined",
        {{"coordinator", options_.coordinator},
         {"name", options_.name},
         {"isa", kernels::IsaName(compute_.isa())},
         {"threads", compute_.threads()}});
    // The signal ends a wait for work; a unit at hand is finished, unless a shard keeps it waiting.
    absl::Notification no_more_waiting;
    std::thread interrupter([&] {
      absl::Time asked = absl::InfiniteFuture(), next_expiry = absl::InfinitePast();
      while (!no_more_waiting.WaitForNotificationWithTimeout(absl::Milliseconds(50))) {
        if (absl::Now() >= next_expiry) {
          metrics_.TellCertificate(options_.tls.get());
          next_expiry = absl::Now() + kTellExpiry;
        }
        health->SetReady(!Stopping() && !membership_->member_id().empty());
        if (!Stopping()) continue;
        coordinator_.InterruptNextWork();
        asked = std::min(asked, absl::Now());
        if (absl::Now() - asked > kGrace) seat_.Leave();
      }
    });
    const absl::Status status = Work();
    no_more_waiting.Notify();
    interrupter.join();
    if (status.ok()) Leave();
    membership_.reset();
    return status;
  }

 private:
  bool Stopping() const { return options_.stop->HasBeenNotified(); }
  absl::Status Work();
  void Leave();
  v1::WorkResult Do(const v1::WorkUnit& unit);

  const WorkerOptions options_;
  const kernels::Compute compute_;
  PhaseSeat seat_;  // the phase at hand; fenced by the epochs that the coordinator announces
  WorkerMetrics metrics_;
  client::CoordinatorClient coordinator_;
  std::unique_ptr<client::Membership> membership_;

  v1::NextWorkRequest request_;  // the member id and the results to report
};

absl::Status Worker::Work() {
  absl::Duration delay = kShortestDelay;
  while (!Stopping()) {
    MILLRACE_RETURN_IF_ERROR(membership_->status());
    const std::string id = membership_->AwaitNewId("", absl::Milliseconds(200));
    if (id.empty()) continue;
    if (id != request_.member_id()) {
      // Leases of the former id are void: nobody waits for those results.
      request_.Clear();
      request_.set_member_id(id);
      request_.set_wait_ms(kWaitMs);
    }
    absl::StatusOr<v1::NextWorkReply> reply = coordinator_.NextWork(request_);
    if (!reply.ok()) {
      if (Stopping()) break;
      if (absl::IsNotFound(reply.status())) {
        membership_->AwaitNewId(id, absl::Seconds(1));
        continue;
      }
      options_.stop->WaitForNotificationWithTimeout(delay);
      delay = std::min(2 * delay, kLongestDelay);
      continue;
    }
    request_.clear_results();
    bool failed = false;
    for (const v1::WorkUnit& unit : reply->units()) {
      if (Stopping()) break;  // the lease ends with the membership
      *request_.add_results() = Do(unit);
      failed |= request_.results(request_.results_size() - 1).failed();
    }
    if (failed) {
      // Most likely a shard is gone: give the coordinator a moment to notice before trying again.
      options_.stop->WaitForNotificationWithTimeout(delay);
      delay = std::min(2 * delay, kLongestDelay);
    } else {
      delay = kShortestDelay;
    }
  }
  return absl::OkStatus();
}

// Reports what was computed last, so that it is not lost, and gives up the rest.
void Worker::Leave() {
  if (request_.member_id().empty() || membership_->member_id() != request_.member_id()) return;
  request_.set_drain(true);
  request_.set_wait_ms(0);
  const absl::Status drained = coordinator_.NextWork(request_).status();
  if (!drained.ok()) Log(Severity::kInfo, "left without a word", {{"error", std::string(drained.message())}});
}

v1::WorkResult Worker::Do(const v1::WorkUnit& unit) {
  v1::WorkResult result;
  result.set_lease(unit.lease());
  result.set_epoch(unit.epoch());
  result.set_kind(unit.kind());
  result.set_version(unit.version());
  result.set_unit(unit.unit());
  const absl::Time begun = absl::Now();
  const absl::Status done = seat_.Do(unit, &result);
  metrics_.Count(unit.kind(), done.ok(), absl::Now() - begun, result.predictions(), seat_.model_flops(),
                 seat_.precision());
  if (!done.ok()) {
    if (done.GetPayload(kNotFinite).has_value()) metrics_.CountNonfinite();
    result.set_failed(true);
    // Whatever lies between here and a shard may be tried again, by another worker or after a recovery. What this
    // unit computes will not change.
    result.set_retryable(!absl::IsInvalidArgument(done) && !absl::IsOutOfRange(done));
    result.set_error(absl::StrCat("worker ", options_.name, ": ", done.message()));
    Log(Severity::kWarning, "unit failed",
        {{"kind", v1::WorkUnit::Kind_Name(unit.kind())},
         {"epoch", unit.epoch()},
         {"version", unit.version()},
         {"unit", unit.unit()},
         {"error", std::string(done.message())}});
  }
  return result;
}

}  // namespace

absl::Status RunWorker(const WorkerOptions& options) {
  KeepHeap();
  return Worker(options).Run();
}

}  // namespace millrace::worker
