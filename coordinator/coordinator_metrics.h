// What the coordinator tells Prometheus (docs/metrics.md has the whole table).
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// What is told of one phase of a job, with the labels train_job and phase. A value that has not been measured is not
// there. Own thread only, but for Checkpoint.
class PhaseMetrics {
 public:
  // `metrics` must outlive this.
  PhaseMetrics(Metrics* metrics, const std::string& job, const std::string& phase, uint64_t target_steps,
               absl::Time now);

  struct Step {
    uint64_t step = 0;
    uint64_t tokens = 0;        // of this step
    uint64_t phase_tokens = 0;  // of the phase, up to this step
    uint64_t saturated = 0;
    double loss = 0;
    double gradient_norm = 0;
    double learning_rate = 0;
  };
  void Applied(const Step& step, const std::map<std::string, double>& statistics, absl::Time now);
  // `rises`: evaluations in a row, this the last, whose loss was above that of the one before.
  void Evaluated(double loss, std::optional<double> best, uint64_t rises,
                 const std::map<std::string, double>& statistics);
  void SetTokensPerSecond(double rate);
  // The run is at `step` again, from which it goes on.
  void Return(uint64_t step, uint64_t phase_tokens);
  void Checkpoint(absl::Time now);

 private:
  MetricGroup group_;
  prometheus::Counter* const steps_;
  prometheus::Counter* const tokens_;
  prometheus::Counter* const saturated_;
  prometheus::Counter* const evaluations_;
  prometheus::Counter* const checkpoints_;
  prometheus::Gauge* const step_;
  prometheus::Gauge* const phase_tokens_;
  prometheus::Gauge* const target_steps_;
  prometheus::Gauge* const last_step_timestamp_;
  prometheus::Gauge* const last_checkpoint_timestamp_;
};

// Thread-safe.
class CoordinatorMetrics {
 public:
  // `metrics` must outlive this.
  explicit CoordinatorMetrics(Metrics* metrics);

  // From now on the job is in this phase. What was told of an earlier phase goes a while after it has ended, so that
  // one more scrape sees its last values.
  std::shared_ptr<PhaseMetrics> BeginPhase(const std::string& job, const std::string& phase, uint64_t target_steps,
                                           absl::Time now);
  // The job does not run any more.
  void EndJob(const std::string& job, absl::Time now);
  // Drops what ended long enough ago; to be called now and then.
  void DropEnded(absl::Time now);

  // Jobs that are in each state.
  void SetJobs(const std::map<v1::Job::State, uint64_t>& jobs);
  // Of the file system that `directory` is on.
  void SetDisk(const std::string& directory);
  void CountLost(v1::MemberRole role);
  // `what`: train_loss, held_out_loss or gradient.
  void CountNonfinite(const std::string& what);

  // Runs of jobs that ended in this state.
  prometheus::Counter* Finished(v1::Job::State state);
  prometheus::Counter* const recoveries;
  prometheus::Gauge* const workers;
  prometheus::Gauge* const shards;
  prometheus::Gauge* const required_shards;
  prometheus::Gauge* const epoch;
  // Results that workers reported, by what became of them.
  prometheus::Counter* const units_accepted;
  prometheus::Counter* const units_repeated;
  prometheus::Counter* const units_stale;
  prometheus::Counter* const units_failed;
  prometheus::Counter* const units_freed;
  prometheus::Histogram* const step_duration;
  prometheus::Histogram* const checkpoint_duration;
  prometheus::Histogram* const queue_duration;

 private:
  prometheus::Gauge* JobsIn(const std::string& state);
  prometheus::Counter* Lost(const std::string& role);
  prometheus::Counter* Nonfinite(const std::string& what);

  struct Told {
    std::string job;
    std::string phase;
    absl::Time ended = absl::InfiniteFuture();
    std::shared_ptr<PhaseMetrics> metrics;
  };
  Metrics* const metrics_;
  absl::Mutex mutex_;
  std::list<Told> told_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::coordinator
