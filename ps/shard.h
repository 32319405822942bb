// Runs a parameter-server shard: joins a cluster, holds blocks of parameters, sums gradients, applies the optimizer.
//
// Everything a shard needs to know comes with the coordinator's Configure: no data, no files.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/credentials.h"

namespace millrace::ps {

struct ShardOptions {
  std::string coordinator;     // HOST:PORT
  std::string name;            // unique among the living shards of the cluster
  std::string listen;          // HOST:PORT to serve at; port 0: any. Others reach it there, or if the host is 0.0.0.0
                               // or [::] (every network of the machine) by the machine's name,
  std::string advertise;       // unless this HOST:PORT says where
  std::string address_file;    // written with the bound HOST:PORT once serving; empty: none
  std::string metrics_listen;  // HOST:PORT of the Prometheus endpoint; empty: none
  std::string health_listen;   // HOST:PORT that tells live and ready (common/health.h); empty: none
  int threads = 1;             // for norms and the optimizer
  std::shared_ptr<const Tls> tls;            // null: plain TCP, on this machine alone
  bool plaintext = false;                    // plain TCP for others too
  absl::Duration grace = absl::Seconds(60);  // how long to wait at the end for a job that needs what this shard holds
  absl::Notification* stop = nullptr;        // required; notified: leave, end calls, return
};

// Serves until `stop` is notified (OK) or the coordinator refuses the shard (PERMISSION_DENIED). UNAVAILABLE if an
// address cannot be bound. A coordinator that does not answer is waited for.
absl::Status RunShard(const ShardOptions& options);

}  // namespace millrace::ps
