// What a worker tells Prometheus (docs/metrics.md has the whole table).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/credentials.h"
#include "common/metrics.h"
#include "kernels/compute.h"
#include "kernels/product.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::worker {

class WorkerMetrics {
 public:
  // `listen`: HOST:PORT, or empty for nowhere.
  explicit WorkerMetrics(std::string listen)
      : listen_(std::move(listen)),
        nonfinite_(metrics_.Counter("millrace_worker_nonfinite_units_total",
                                    "Work units that failed because a gradient was not finite.")) {}

  absl::Status Serve() { return metrics_.Serve(listen_); }
  void TellCertificate(const Tls* tls) { TellExpiry(tls, &metrics_); }
  // Measures, for less than 0.1 s, what products can do, if anybody can read it.
  void TellPeaks(const kernels::Compute& compute);
  // A unit was done, well or not, and took so long; `predictions` of it were computed, with so much arithmetic of the
  // model, which is of that precision.
  void Count(v1::WorkUnit::Kind kind, bool well, absl::Duration took, uint64_t predictions, double model_flops,
             kernels::Precision precision);
  void CountNonfinite() { nonfinite_->Increment(); }

 private:
  const std::string listen_;
  Metrics metrics_;
  prometheus::Counter* const nonfinite_;
};

}  // namespace millrace::worker
