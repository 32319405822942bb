#include "ps/shard_metrics.h"

namespace millrace::ps {
namespace {

ShardMetrics::Traffic TrafficOf(Metrics* metrics, const char* rpc) {
  return {metrics->Counter("millrace_shard_blocks_total", "Blocks that calls took in or gave out.", {{"rpc", rpc}}),
          metrics->Counter("millrace_shard_bytes_total", "Bytes of values in these blocks.", {{"rpc", rpc}})};
}

}  // namespace

ShardMetrics::ShardMetrics(Metrics* metrics)
    : epoch(metrics->Gauge("millrace_shard_epoch", "Newest epoch that the shard knows.")),
      version(metrics->Gauge("millrace_shard_version", "Version of the weights that the shard holds.")),
      parameters(metrics->Gauge("millrace_shard_parameters", "Parameters that the shard holds.")),
      waiting_pulls(metrics->Gauge("millrace_shard_waiting_pulls", "Pulls that wait for their version.")),
      attachments(
          metrics->Gauge("millrace_shard_attachments", "Workers of this machine whose blocks pass through memory.")),
      copy_bytes(metrics->Gauge("millrace_shard_snapshot_copy_bytes", "Memory of blocks copied for snapshots.")),
      load(TrafficOf(metrics, "load")),
      pull(TrafficOf(metrics, "pull")),
      push(TrafficOf(metrics, "push")),
      snapshot(TrafficOf(metrics, "snapshot")),
      repeated(metrics->Counter("millrace_shard_repeated_blocks_total", "Pushed blocks that had been counted before.")),
      saturated(
          metrics->Counter("millrace_shard_saturated_values_total", "Gradient values that did not fit their coding.")),
      refused(metrics->Counter("millrace_shard_refused_calls_total",
                               "Calls that ended in an error, cancelled ones not counted.")),
      pull_duration(metrics->Histogram("millrace_shard_pull_duration_seconds",
                                       "Time of a pull, that for which it waited for its version included.",
                                       DurationBounds())),
      norms_duration(
          metrics->Histogram("millrace_shard_norms_duration_seconds", "Time to compute norms.", DurationBounds())),
      commit_duration(
          metrics->Histogram("millrace_shard_commit_duration_seconds", "Time to apply a step.", DurationBounds())),
      snapshot_duration(metrics->Histogram("millrace_shard_snapshot_duration_seconds",
                                           "Time from the cut to the last block.", DurationBounds())) {}

}  // namespace millrace::ps
