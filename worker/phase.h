// Does units of work: plans, initialises, trains, evaluates and answers with the parameters of an epoch's shards.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "client/shard_group.h"
#include "kernels/compute.h"
#include "kernels/product.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::worker {

// Payload of an error that says that a gradient was not finite.
inline constexpr char kNotFinite[] = "millrace/not-finite";

// Where a worker sits while it works on one phase after another. An epoch is fenced: once a later one is announced,
// calls to the shards of the former end, and its units fail with FAILED_PRECONDITION.
class PhaseSeat {
 public:
  // `compute` outlives this. With `share_memory`, blocks of shards on this machine come and go through memory.
  // `credentials` of the shards; null: plain TCP.
  explicit PhaseSeat(const kernels::Compute* compute, bool share_memory = true,
                     std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);
  ~PhaseSeat();

  // From any thread: what belongs to an epoch below may be dropped.
  void Announce(uint64_t epoch);
  // From any thread: ends the unit at hand, and every later one, with CANCELLED.
  void Leave();

  // Own thread only. Does the unit and fills in what it results in: table and files of a plan, loss and predictions.
  // INVALID_ARGUMENT and OUT_OF_RANGE: this unit cannot be done, by nobody (a gradient that is not finite, a model that
  // cannot be). Other errors may go away: shards that are lost or configured anew.
  absl::Status Do(const v1::WorkUnit& unit, v1::WorkResult* result);
  // Own thread only. Of the unit that was done last (model_flops.h); 0 if it neither trained nor evaluated.
  double model_flops() const { return model_flops_; }
  // Own thread only. In which the model of the phase at hand computes; f32 before there is one.
  kernels::Precision precision() const;

 private:
  class Models;
  class Epoch;

  absl::Status Enter(const v1::WorkUnit& unit);
  absl::Status EnterAndDo(const v1::WorkUnit& unit, v1::WorkResult* result);
  absl::Status CheckPresent(uint64_t epoch) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const kernels::Compute* const compute_;
  const bool share_memory_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  // Own thread only. The models outlive epochs that have the same ones.
  std::unique_ptr<Models> models_;
  std::unique_ptr<Epoch> epoch_;
  double model_flops_ = 0;

  absl::Mutex mutex_;
  uint64_t announced_ ABSL_GUARDED_BY(mutex_) = 0;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<client::ShardGroup> group_ ABSL_GUARDED_BY(mutex_);  // of epoch_; null while planning
};

}  // namespace millrace::worker
