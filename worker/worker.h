// Runs a worker: joins a cluster, takes units of work, computes, pushes gradients to the shards, reports losses.
//
// Everything a worker needs to know comes with the work: no data, no files.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "common/credentials.h"
#include "kernels/compute.h"

namespace millrace::worker {

struct WorkerOptions {
  std::string coordinator;                       // HOST:PORT
  std::string name;                              // unique among the living workers of the cluster
  std::string metrics_listen;                    // HOST:PORT of the Prometheus endpoint; empty: none
  std::string health_listen;                     // HOST:PORT that tells live and ready (common/health.h); empty: none
  kernels::Isa max_isa = kernels::Isa::kScalar;  // instruction sets above are not used
  bool share_memory = true;                      // with shards on this machine
  int threads = 1;                               // that compute, the calling one included
  std::shared_ptr<const Tls> tls;                // null: plain TCP
  absl::Notification* stop = nullptr;            // required; notified: finish the unit at hand, report it, leave
};

// Works until `stop` is notified (OK) or the coordinator refuses the worker (PERMISSION_DENIED). A coordinator or a
// shard that does not answer is waited for.
absl::Status RunWorker(const WorkerOptions& options);

}  // namespace millrace::worker
