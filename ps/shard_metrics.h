// What a shard tells Prometheus (docs/metrics.md has the whole table).
#pragma once

#include "common/metrics.h"

namespace millrace::ps {

struct ShardMetrics {
  // `metrics` must outlive this.
  explicit ShardMetrics(Metrics* metrics);

  prometheus::Gauge* epoch;
  prometheus::Gauge* version;
  prometheus::Gauge* parameters;
  prometheus::Gauge* waiting_pulls;
  prometheus::Gauge* attachments;
  prometheus::Gauge* copy_bytes;
  // Blocks that calls took or gave, and their bytes of values.
  struct Traffic {
    prometheus::Counter* blocks;
    prometheus::Counter* bytes;
  };
  Traffic load;
  Traffic pull;
  Traffic push;
  Traffic snapshot;
  prometheus::Counter* repeated;
  prometheus::Counter* saturated;
  prometheus::Counter* refused;
  prometheus::Histogram* pull_duration;
  prometheus::Histogram* norms_duration;
  prometheus::Histogram* commit_duration;
  prometheus::Histogram* snapshot_duration;
};

}  // namespace millrace::ps
