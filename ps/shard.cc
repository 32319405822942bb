#include "ps/shard.h"

#include <malloc.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/coordinator_client.h"
#include "common/grpc_server.h"
#include "common/health.h"
#include "common/log.h"
#include "common/machine.h"
#include "common/metrics.h"
#include "common/status.h"
#include "kernels/compute.h"
#include "ps/conformance.h"
#include "ps/parameter_service.h"
#include "ps/shard_metrics.h"

namespace millrace::ps {
namespace {

// How often it is looked whether membership lasts, and unused memory is given back.
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr absl::Duration kTellExpiry = absl::Seconds(10);
// For calls in flight when the shard is asked to stop.
constexpr absl::Duration kGrace = absl::Seconds(1);

// Messages come and go on many threads. Left alone, each thread's part of the heap keeps the most that it ever had: in
// a trial with 16 workers and 10 M parameters, 450 MB in place of 270.
void BoundHeap() {
  mallopt(M_ARENA_MAX, 2);
  mallopt(M_MMAP_THRESHOLD, 400'000);  // above a block of weights, below what comes once a step
  mallopt(M_TRIM_THRESHOLD, 4'000'000);
}

// Where others reach what is bound at `bound`.
std::string ReachableAddress(absl::string_view bound) {
  const size_t colon = bound.rfind(':');
  const absl::string_view host = bound.substr(0, colon);
  if (host != "0.0.0.0" && host != "[::]") return std::string(bound);
  char name[256] = "";
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return std::string(bound);
  return absl::StrCat(name, bound.substr(colon));
}

}  // namespace

absl::Status RunShard(const ShardOptions& options) {
  MILLRACE_RETURN_IF_ERROR(CheckListen(options.listen, options.tls != nullptr, options.plaintext));
  BoundHeap();
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<HealthServer> health, HealthServer::Start(options.health_listen));
  Metrics registry;
  ShardMetrics metrics(&registry);
  MILLRACE_RETURN_IF_ERROR(registry.Serve(options.metrics_listen));
  ParameterService service(options.threads, &metrics);
  GrpcServerOptions serving;
  serving.listen = options.listen;
  serving.address_file = options.address_file;
  serving.services = {&service};
  AccessOptions access_options;
  access_options.metrics = &registry;
  Access access(std::move(access_options));
  if (options.tls != nullptr) {
    serving.credentials = options.tls->ForServers();
    serving.access = &access;
    TellExpiry(options.tls.get(), &registry);
  }
  if (!options.metrics_listen.empty()) serving.metrics = &registry;
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server, GrpcServer::Start(serving));
  const std::string address = options.advertise.empty() ? ReachableAddress(server->address()) : options.advertise;
  Log(Severity::kInfo, "serves", {{"address", server->address()}, {"threads", options.threads}});

  client::Membership::Options membership;
  membership.coordinator = options.coordinator;
  if (options.tls != nullptr) membership.coordinator.credentials = options.tls->ForChannels(Role::kCoordinator);
  membership.join.set_role(v1::SHARD);
  membership.join.set_name(options.name);
  membership.join.set_address(address);
  membership.join.set_conformance_digest(ConformanceDigest());
  membership.join.set_build(BuildDescription());
  membership.join.set_processor(absl::StrCat(ProcessorName(), "; ", kernels::IsaName(kernels::DetectIsa())));
  membership.join.set_threads(static_cast<uint32_t>(options.threads));
  membership.on_epoch = [&service](uint64_t epoch) { service.Announce(epoch); };
  membership.resident_bytes = &ResidentBytes;
  absl::StatusOr<std::unique_ptr<client::Membership>> joined =
      client::Membership::Join(std::move(membership), options.stop);
  absl::Status status = joined.status();
  if (absl::IsCancelled(status) && options.stop->HasBeenNotified()) status = absl::OkStatus();
  if (joined.ok()) {
    Log(Severity::kInfo, "joined",
        {{"coordinator", options.coordinator}, {"name", options.name}, {"address", address}});
    absl::Time next_expiry = absl::InfinitePast();
    while (status.ok() && !options.stop->WaitForNotificationWithTimeout(kLook)) {
      health->SetReady(!(*joined)->member_id().empty() && service.HasWhatItShould());
      malloc_trim(0);
      if (absl::Now() >= next_expiry) {
        TellExpiry(options.tls.get(), &registry);
        next_expiry = absl::Now() + kTellExpiry;
      }
      status = (*joined)->status();
    }
    health->SetReady(false);
    if (status.ok() && options.grace > absl::ZeroDuration()) {
      Log(Severity::kInfo, "leaves", {{"grace", absl::FormatDuration(options.grace)}});
      // Whatever fails, the job goes on from its last checkpoint.
      const absl::Status released = (*joined)->AwaitRelease(options.grace);
      if (!released.ok()) Log(Severity::kInfo, "left without a word", {{"error", std::string(released.message())}});
    }
    // The coordinator hears of it before calls fail.
    joined->reset();
  }
  service.Close();
  server->Shutdown(kGrace);
  return status;
}

}  // namespace millrace::ps
