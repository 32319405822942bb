#include "coordinator/coordinator_metrics.h"

#include <sys/statvfs.h>

#include "absl/strings/ascii.h"

namespace millrace::coordinator {
namespace {

// Longer than the time between two scrapes mostly is.
constexpr absl::Duration kLinger = absl::Minutes(1);

constexpr v1::Job::State kStates[] = {v1::Job::QUEUED,    v1::Job::PREPARING, v1::Job::RUNNING,  v1::Job::PAUSED,
                                      v1::Job::SUCCEEDED, v1::Job::FAILED,    v1::Job::CANCELLED};

std::string StateName(v1::Job::State state) { return absl::AsciiStrToLower(v1::Job::State_Name(state)); }

double UnixSeconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

}  // namespace

PhaseMetrics::PhaseMetrics(Metrics* metrics, const std::string& job, const std::string& phase, uint64_t target_steps,
                           absl::Time now)
    : group_(metrics, {{"train_job", job}, {"phase", phase}}),
      steps_(group_.Counter("millrace_steps_total", "Optimizer steps applied.")),
      tokens_(group_.Counter("millrace_trained_tokens_total", "Predictions trained on.")),
      saturated_(group_.Counter("millrace_saturated_values_total",
                                "Gradient values of the steps applied that did not fit their coding.")),
      evaluations_(group_.Counter("millrace_evaluations_total", "Evaluations on the held-out text.")),
      checkpoints_(group_.Counter("millrace_checkpoints_total", "Checkpoints written.")),
      step_(group_.Gauge("millrace_step", "Steps of the phase that the weights have.")),
      phase_tokens_(group_.Gauge("millrace_phase_tokens", "Predictions that these steps were trained on.")),
      target_steps_(group_.Gauge("millrace_target_steps", "Steps after which the phase ends at the latest.")),
      last_step_timestamp_(group_.Gauge("millrace_last_step_timestamp_seconds",
                                        "Unix time of the last step, or of the run's beginning before there is one.")),
      last_checkpoint_timestamp_(
          group_.Gauge("millrace_last_checkpoint_timestamp_seconds",
                       "Unix time of the last checkpoint, or of the run's beginning before there is one.")) {
  target_steps_->Set(static_cast<double>(target_steps));
  last_step_timestamp_->Set(UnixSeconds(now));
  last_checkpoint_timestamp_->Set(UnixSeconds(now));
}

void PhaseMetrics::Applied(const Step& step, const std::map<std::string, double>& statistics, absl::Time now) {
  steps_->Increment();
  tokens_->Increment(static_cast<double>(step.tokens));
  saturated_->Increment(static_cast<double>(step.saturated));
  step_->Set(static_cast<double>(step.step));
  phase_tokens_->Set(static_cast<double>(step.phase_tokens));
  last_step_timestamp_->Set(UnixSeconds(now));
  group_.Gauge("millrace_train_loss_nats", "Loss of the last step, nats a token.")->Set(step.loss);
  group_.Gauge("millrace_gradient_norm", "Norm of the last gradient before clipping.")->Set(step.gradient_norm);
  group_.Gauge("millrace_learning_rate", "Learning rate of the last step.")->Set(step.learning_rate);
  for (const auto& [name, value] : statistics) {
    group_.Gauge("millrace_train_statistic", "What else the last step measured, by name.", {{"name", name}})
        ->Set(value);
  }
}

void PhaseMetrics::Evaluated(double loss, std::optional<double> best, uint64_t rises,
                             const std::map<std::string, double>& statistics) {
  evaluations_->Increment();
  group_.Gauge("millrace_held_out_loss_nats", "Last held-out loss, nats a token.")->Set(loss);
  if (best.has_value()) {
    group_.Gauge("millrace_best_held_out_loss_nats", "Least held-out loss of the phase, nats a token.")->Set(*best);
  }
  group_
      .Gauge("millrace_held_out_loss_rises",
             "Evaluations in a row, up to the last, whose loss was above that of the one before.")
      ->Set(static_cast<double>(rises));
  for (const auto& [name, value] : statistics) {
    group_.Gauge("millrace_held_out_statistic", "What else the last evaluation measured, by name.", {{"name", name}})
        ->Set(value);
  }
}

void PhaseMetrics::SetTokensPerSecond(double rate) {
  group_.Gauge("millrace_tokens_per_second", "Predictions trained on a second.")->Set(rate);
}

void PhaseMetrics::Return(uint64_t step, uint64_t phase_tokens) {
  step_->Set(static_cast<double>(step));
  phase_tokens_->Set(static_cast<double>(phase_tokens));
}

void PhaseMetrics::Checkpoint(absl::Time now) {
  checkpoints_->Increment();
  last_checkpoint_timestamp_->Set(UnixSeconds(now));
}

CoordinatorMetrics::CoordinatorMetrics(Metrics* metrics)
    : recoveries(metrics->Counter("millrace_recoveries_total", "Returns to a checkpoint because shards were lost.")),
      workers(metrics->Gauge("millrace_members", "Living members of the cluster.", {{"role", "worker"}})),
      shards(metrics->Gauge("millrace_members", "Living members of the cluster.", {{"role", "shard"}})),
      required_shards(metrics->Gauge("millrace_required_shards", "Shards that a job waits for.")),
      epoch(metrics->Gauge("millrace_epoch", "The newest epoch: configurations of the shards so far.")),
      units_accepted(metrics->Counter("millrace_unit_results_total", "Results of work units, by what became of them.",
                                      {{"verdict", "accepted"}})),
      units_repeated(metrics->Counter("millrace_unit_results_total", "Results of work units, by what became of them.",
                                      {{"verdict", "repeated"}})),
      units_stale(metrics->Counter("millrace_unit_results_total", "Results of work units, by what became of them.",
                                   {{"verdict", "stale"}})),
      units_failed(metrics->Counter("millrace_unit_results_total", "Results of work units, by what became of them.",
                                    {{"verdict", "failed"}})),
      units_freed(
          metrics->Counter("millrace_unit_leases_freed_total", "Leases freed because their holder went or was late.")),
      step_duration(
          metrics->Histogram("millrace_step_duration_seconds", "Time from one commit to the next.", DurationBounds())),
      checkpoint_duration(metrics->Histogram("millrace_checkpoint_duration_seconds",
                                             "Time from the cut to the finished folder.", DurationBounds())),
      queue_duration(metrics->Histogram("millrace_job_queue_duration_seconds",
                                        "Time from a job's submission to its first start.",
                                        {1, 5, 20, 60, 300, 1200, 3600, 14400, 86400})),
      metrics_(metrics) {
  for (const v1::Job::State state : kStates) JobsIn(StateName(state));
  for (const char* role : {"worker", "shard"}) Lost(role);
  for (const v1::Job::State state : {v1::Job::SUCCEEDED, v1::Job::FAILED, v1::Job::CANCELLED}) Finished(state);
  for (const char* what : {"train_loss", "held_out_loss", "gradient"}) Nonfinite(what);
}

std::shared_ptr<PhaseMetrics> CoordinatorMetrics::BeginPhase(const std::string& job, const std::string& phase,
                                                             uint64_t target_steps, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  told_.remove_if([&](const Told& told) { return told.job == job && told.phase == phase; });
  for (Told& told : told_) {
    if (told.job == job && told.ended == absl::InfiniteFuture()) told.ended = now;
  }
  told_.push_back(
      {job, phase, absl::InfiniteFuture(), std::make_shared<PhaseMetrics>(metrics_, job, phase, target_steps, now)});
  return told_.back().metrics;
}

void CoordinatorMetrics::EndJob(const std::string& job, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  for (Told& told : told_) {
    if (told.job == job && told.ended == absl::InfiniteFuture()) told.ended = now;
  }
}

void CoordinatorMetrics::DropEnded(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  told_.remove_if([now](const Told& told) { return told.ended <= now - kLinger; });
}

void CoordinatorMetrics::SetJobs(const std::map<v1::Job::State, uint64_t>& jobs) {
  for (const v1::Job::State state : kStates) {
    const auto found = jobs.find(state);
    JobsIn(StateName(state))->Set(found == jobs.end() ? 0 : static_cast<double>(found->second));
  }
}

void CoordinatorMetrics::SetDisk(const std::string& directory) {
  struct statvfs disk = {};
  if (statvfs(directory.c_str(), &disk) != 0) return;
  const auto block = static_cast<double>(disk.f_frsize);
  metrics_->Gauge("millrace_disk_free_bytes", "Free space where the coordinator's folder is.")
      ->Set(static_cast<double>(disk.f_bavail) * block);
  metrics_->Gauge("millrace_disk_size_bytes", "Size of the file system where the coordinator's folder is.")
      ->Set(static_cast<double>(disk.f_blocks) * block);
}

void CoordinatorMetrics::CountLost(v1::MemberRole role) { Lost(role == v1::WORKER ? "worker" : "shard")->Increment(); }
void CoordinatorMetrics::CountNonfinite(const std::string& what) { Nonfinite(what)->Increment(); }

prometheus::Gauge* CoordinatorMetrics::JobsIn(const std::string& state) {
  return metrics_->Gauge("millrace_jobs", "Jobs that there are, by state.", {{"state", state}});
}
prometheus::Counter* CoordinatorMetrics::Lost(const std::string& role) {
  return metrics_->Counter("millrace_members_lost_total", "Members that left or fell silent.", {{"role", role}});
}
prometheus::Counter* CoordinatorMetrics::Finished(v1::Job::State state) {
  return metrics_->Counter("millrace_jobs_finished_total", "Runs of jobs that ended, by how.",
                           {{"result", StateName(state)}});
}
prometheus::Counter* CoordinatorMetrics::Nonfinite(const std::string& what) {
  return metrics_->Counter("millrace_nonfinite_results_total",
                           "Losses and gradients that were not finite: each ends its job.", {{"what", what}});
}

}  // namespace millrace::coordinator
