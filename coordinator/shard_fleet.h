// What the coordinator asks of all shards of an epoch together; simulated in tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::coordinator {

struct FleetSetup {
  std::string job_id;
  std::string phase;
  v1::TensorTable table;
  v1::OptimizerSpec optimizer;
  uint64_t max_steps = 0;
  uint32_t units_per_step = 0;
};

struct FleetNorms {
  double squared_norm = 0;  // of the whole gradient: the blocks' squared norms added in block order
  uint64_t saturated = 0;   // values that did not fit their coding, in this step
  // By tensor, if they are asked for and tracked: what TensorInfo::ScoreOf names, the blocks' added in block order.
  std::vector<std::vector<double>> scores;
};

// A version held by every shard while its blocks are read.
class FleetCut {
 public:
  virtual ~FleetCut() = default;
  // Gives every block that is wanted to `sink` once, from several threads at a time; the first error ends it.
  virtual absl::Status Read(absl::FunctionRef<absl::Status(const v1::SnapshotReply& block)> sink) = 0;
  // Makes Read return CANCELLED soon; from any thread.
  virtual void Cancel() = 0;
};

// The shards of one epoch. Used by one thread, besides cuts. Errors name the shard; UNAVAILABLE, DEADLINE_EXCEEDED and
// FAILED_PRECONDITION mean that the shards have to be configured anew.
class ShardFleet {
 public:
  virtual ~ShardFleet() = default;
  virtual absl::Status Configure(const FleetSetup& setup) = 0;
  // Loads every block at `version` with what `source` fills in (weights, state, coding, by block index); `source` is
  // called from several threads at a time.
  virtual absl::Status Load(uint64_t version,
                            absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source) = 0;
  // Requests are without epoch.
  // Once all units of the step after the request's version are in.
  virtual absl::StatusOr<FleetNorms> Norms(const v1::NormsRequest& request) = 0;
  // Publishes the request's version + 1; returns the learning rate used.
  virtual absl::StatusOr<double> Commit(const v1::CommitRequest& request) = 0;
  // Returns once every shard holds `version`. The blocks of the tensors that are `left_out`, by index, are not wanted.
  virtual absl::StatusOr<std::unique_ptr<FleetCut>> Snapshot(uint64_t version, absl::Span<const uint32_t> left_out) = 0;
};

// Connects to the shards at these addresses, in the order of their indices, for one epoch.
using FleetConnector = std::function<absl::StatusOr<std::unique_ptr<ShardFleet>>(
    uint64_t epoch, const std::vector<std::string>& addresses)>;

}  // namespace millrace::coordinator
