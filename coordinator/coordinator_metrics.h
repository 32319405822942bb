// What the coordinator tells Prometheus (docs/metrics.md has the whole table).
#pragma once

#include <map>
#include <string>

#include "common/metrics.h"

namespace millrace::coordinator {

// All of the present job, but for the totals.
struct CoordinatorMetrics {
  // `metrics` must outlive this.
  explicit CoordinatorMetrics(Metrics* metrics);

  // What else steps and evaluations measured, by name (docs/job-file.md).
  void SetTrainStatistics(const std::map<std::string, double>& statistics);
  void SetHeldOutStatistics(const std::map<std::string, double>& statistics);

  prometheus::Counter* steps;
  prometheus::Counter* tokens;
  prometheus::Counter* saturated;
  prometheus::Counter* recoveries;
  prometheus::Counter* checkpoints;
  prometheus::Gauge* step;
  prometheus::Gauge* train_loss;
  prometheus::Gauge* held_out_loss;
  prometheus::Gauge* gradient_norm;
  prometheus::Gauge* learning_rate;
  prometheus::Gauge* tokens_per_second;
  prometheus::Gauge* last_step_timestamp;
  prometheus::Gauge* last_checkpoint_timestamp;
  prometheus::Gauge* workers;
  prometheus::Gauge* shards;
  prometheus::Gauge* jobs_queued;
  // Results that workers reported, by what became of them.
  prometheus::Gauge* units_accepted;
  prometheus::Gauge* units_repeated;
  prometheus::Gauge* units_stale;
  prometheus::Gauge* units_failed;
  prometheus::Gauge* units_freed;
  prometheus::Histogram* step_duration;
  prometheus::Histogram* checkpoint_duration;

 private:
  Metrics* const metrics_;
};

}  // namespace millrace::coordinator
