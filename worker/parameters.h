// Holds a worker's copy of the parameters at one version, and fetches another one while the forward pass begins.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "client/shard_group.h"
#include "common/thread_cache.h"

namespace millrace::worker {

class Parameters {
 public:
  // All outlive this. `offsets`: where in `weights` each of the table's tensors begins. `weight_bits`: of what is
  // pulled.
  Parameters(const std::vector<int64_t>* offsets, const blocks::BlockTable* blocks, client::ShardGroup* group,
             uint32_t weight_bits, bool holds_frozen, float* weights);

  // Starts to fetch `version`, unless it is held. Then Await, then Settle. Frozen tensors are fetched the first time,
  // unless they are in `weights` from the start.
  void Fetch(uint64_t version);
  // Waits until the weights of a tensor group are there.
  absl::Status Await(uint32_t group);
  // Waits until all is there. After an error nothing is held.
  absl::Status Settle();
  // What is trained has changed at the version that is held.
  void Forget() { version_ = kNone; }

  bool holds_frozen() const { return holds_frozen_; }
  // How gradients are coded at the version that is held.
  const blocks::Coding& coding(uint32_t block) const { return codings_[block]; }

 private:
  static constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();

  absl::Status Take(uint32_t block, absl::string_view bytes, const blocks::Coding& coding);

  const std::vector<int64_t>* const offsets_;
  const blocks::BlockTable* const blocks_;
  client::ShardGroup* const group_;
  const uint32_t weight_bits_;
  float* const weights_;
  std::vector<blocks::Coding> codings_;  // by block; each written once a fetch, before its group counts as there
  uint64_t version_ = kNone;             // own thread only
  bool holds_frozen_;                    // likewise

  absl::Mutex mutex_;
  absl::CondVar arrived_ ABSL_GUARDED_BY(mutex_);
  std::vector<size_t> missing_ ABSL_GUARDED_BY(mutex_);  // blocks, by group
  bool ended_ ABSL_GUARDED_BY(mutex_) = true;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);

  ThreadCache threads_;
  ThreadCache::Work fetching_;  // uses all of the above until it is done
};

}  // namespace millrace::worker
