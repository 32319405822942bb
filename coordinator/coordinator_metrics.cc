#include "coordinator/coordinator_metrics.h"

namespace millrace::coordinator {

CoordinatorMetrics::CoordinatorMetrics(Metrics* metrics)
    : steps(metrics->Counter("millrace_steps_total", "Optimizer steps applied.")),
      tokens(metrics->Counter("millrace_trained_tokens_total", "Predictions trained on.")),
      saturated(metrics->Counter("millrace_saturated_values_total", "Gradient values that did not fit their coding.")),
      recoveries(metrics->Counter("millrace_recoveries_total", "Returns to a checkpoint because shards were lost.")),
      checkpoints(metrics->Counter("millrace_checkpoints_total", "Checkpoints written.")),
      step(metrics->Gauge("millrace_step", "Steps applied in the present phase.")),
      train_loss(metrics->Gauge("millrace_train_loss_nats", "Loss of the last step, nats a token.")),
      held_out_loss(metrics->Gauge("millrace_held_out_loss_nats", "Last held-out loss, nats a token.")),
      gradient_norm(metrics->Gauge("millrace_gradient_norm", "Norm of the last gradient before clipping.")),
      learning_rate(metrics->Gauge("millrace_learning_rate", "Learning rate of the last step.")),
      tokens_per_second(metrics->Gauge("millrace_tokens_per_second", "Predictions trained on a second.")),
      last_step_timestamp(metrics->Gauge("millrace_last_step_timestamp_seconds", "Unix time of the last step.")),
      last_checkpoint_timestamp(
          metrics->Gauge("millrace_last_checkpoint_timestamp_seconds", "Unix time of the last checkpoint.")),
      workers(metrics->Gauge("millrace_members", "Living members of the cluster.", {{"role", "worker"}})),
      shards(metrics->Gauge("millrace_members", "Living members of the cluster.", {{"role", "shard"}})),
      jobs_queued(metrics->Gauge("millrace_jobs_queued", "Jobs that wait for their turn.")),
      units_accepted(metrics->Gauge("millrace_unit_results", "Results of work units, by what became of them.",
                                    {{"verdict", "accepted"}})),
      units_repeated(metrics->Gauge("millrace_unit_results", "Results of work units, by what became of them.",
                                    {{"verdict", "repeated"}})),
      units_stale(metrics->Gauge("millrace_unit_results", "Results of work units, by what became of them.",
                                 {{"verdict", "stale"}})),
      units_failed(metrics->Gauge("millrace_unit_results", "Results of work units, by what became of them.",
                                  {{"verdict", "failed"}})),
      units_freed(metrics->Gauge("millrace_unit_leases_freed", "Leases freed because their holder went or was late.")),
      step_duration(
          metrics->Histogram("millrace_step_duration_seconds", "Time from one commit to the next.", DurationBounds())),
      checkpoint_duration(metrics->Histogram("millrace_checkpoint_duration_seconds",
                                             "Time from the cut to the finished folder.", DurationBounds())),
      metrics_(metrics) {}

void CoordinatorMetrics::SetTrainStatistics(const std::map<std::string, double>& statistics) {
  for (const auto& [name, value] : statistics) {
    metrics_->Gauge("millrace_train_statistic", "What else the last step measured, by name.", {{"name", name}})
        ->Set(value);
  }
}

void CoordinatorMetrics::SetHeldOutStatistics(const std::map<std::string, double>& statistics) {
  for (const auto& [name, value] : statistics) {
    metrics_->Gauge("millrace_held_out_statistic", "What else the last evaluation measured, by name.", {{"name", name}})
        ->Set(value);
  }
}

}  // namespace millrace::coordinator
