// Holds the blocks of one shard for one epoch: takes in gradients, applies steps, gives out weights and snapshots.
//
// A version is pulled and its gradients are pushed while the shard is at it. Once every unit of the step is in, a
// commit changes the blocks one piece after another and then publishes the next version; each piece knows the version
// it is at, so that no reader gets bytes of another version than it asked for, and no late push gets into another step.
//
// Memory, for each parameter: 4 bytes of weights, the optimizer's state, 8 bytes of sums if trained; and while
// snapshots are read, 2 bytes and 8 MiB in all for copies at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "blocks/block_table.h"
#include "kernels/compute.h"
#include "optim/optimizer.h"
#include "proto/millrace/v1/parameter_server.pb.h"
#include "ps/cuts.h"
#include "ps/held_piece.h"

namespace millrace::ps {

// Thread-safe. Requests are checked but for their epoch, which is the store's. Every call returns soon after Close,
// with its reason.
class BlockStore {
 public:
  // INVALID_ARGUMENT says what is wrong with the request; RESOURCE_EXHAUSTED: this machine has not the memory.
  // `compute`, which outlives the store, is used for Norms and Commit.
  static absl::StatusOr<std::unique_ptr<BlockStore>> Create(const v1::ConfigureRequest& request,
                                                            const kernels::Compute* compute);

  uint64_t blocks() const { return held_.size(); }
  uint64_t parameters() const { return parameters_; }
  uint64_t version() const;
  // Every block is loaded.
  bool ready() const;
  // Blocks that are loaded.
  uint64_t loaded() const;
  // Memory of copies for snapshots.
  size_t copy_bytes() const { return cuts_.bytes(); }

  // Sets a block. Once the store is ready, what was loaded already is left as it is, so that a second initialisation
  // does no harm, unless the request says `again` and nothing was pushed to the block; FAILED_PRECONDITION for another
  // version than the one that was or is being loaded.
  absl::Status Load(const v1::LoadRequest& request);

  // INVALID_ARGUMENT for a block that is not held here.
  absl::Status CheckHeld(absl::Span<const uint32_t> blocks) const;
  // The blocks held here, in the table's order.
  const std::vector<uint32_t>& held() const { return held_; }
  // Waits until the store is at `version`; FAILED_PRECONDITION if it has passed it. `cancelled` is asked now and then.
  absl::Status AwaitVersion(uint64_t version, absl::FunctionRef<bool()> cancelled);
  // Copies a block's weights to `weights`, which has room for PulledBytes. FAILED_PRECONDITION unless the block is at
  // `version`. Requires a block that is held here.
  absl::Status Pull(uint32_t block, uint64_t version, char* weights, v1::Coding* coding) const;
  size_t PulledBytes(uint32_t block) const { return places_[block].piece->pulled_bytes(places_[block].part); }

  // Adds a unit's gradient of a block; false if it has been added before. The values are the request's own, which have
  // their checksum, or lie in the memory of this machine.
  absl::StatusOr<bool> Push(const v1::PushRequest& request);
  absl::StatusOr<bool> Push(const v1::PushRequest& request, absl::string_view values);

  // Once all units are in: the squared norms of all blocks held, 0 for those that are not trained; and the scores that
  // the request asks for.
  absl::Status Norms(const v1::NormsRequest& request, v1::NormsReply* reply);

  // Applies the step after the request's version, or says again what a commit of it said. Sets `applied` if it was not
  // a repetition. INVALID_ARGUMENT names an element that cannot become zero.
  absl::StatusOr<v1::CommitReply> Commit(const v1::CommitRequest& request, bool* applied);

  // Holds `version`, which the store must be at, but for the tensors that are `left_out`, by index: of these nothing is
  // kept, and nothing is to be read.
  absl::StatusOr<std::unique_ptr<Cuts::Cut>> Hold(uint64_t version, absl::Span<const uint32_t> left_out = {});
  // A block as it is at the cut's version, state and all.
  absl::Status Read(Cuts::Cut* cut, uint32_t block, v1::SnapshotReply* reply) const;

  // Ends everything with `why`, which is not OK, and frees the blocks.
  void Close(const absl::Status& why);

 private:
  struct Place {
    HeldPiece* piece = nullptr;  // null: on another shard
    uint32_t part = 0;
  };

  BlockStore(blocks::BlockTable table, const v1::ConfigureRequest& request, std::unique_ptr<optim::Optimizer> optimizer,
             const kernels::Compute* compute, std::vector<uint32_t> shard_of);

  absl::Status CheckHeld(uint32_t block) const;
  // Where the gradient belongs, if it can.
  absl::StatusOr<Place> PlaceOf(const v1::PushRequest& request) const;
  // That the store is at `version`.
  absl::Status CheckAt(uint64_t version) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckAtLocked(uint64_t version) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // That all units of the step are in.
  absl::Status CheckComplete(uint64_t version) const;
  // The elements that a commit sets to zero, by tensor.
  absl::StatusOr<std::map<uint32_t, std::vector<int64_t>>> ZeroedBy(const v1::CommitRequest& request) const;
  // A shard without blocks is told its version by nobody: it is at any.
  void FollowIfEmpty(uint64_t version);
  bool Secure(size_t piece, uint64_t version, bool wait);
  void Step(size_t begin, size_t end, const StepRule& rule, uint64_t version);

  // Constant after construction.
  const blocks::BlockTable table_;
  const v1::OptimizerSpec spec_;
  const uint64_t max_steps_;
  const uint32_t shard_index_, shard_count_, units_per_step_;
  const std::unique_ptr<optim::Optimizer> optimizer_;
  const kernels::Compute* const compute_;
  const std::vector<uint32_t> shard_of_;            // by block
  std::vector<std::unique_ptr<HeldPiece>> pieces_;  // in the table's order
  std::vector<Place> places_;                       // by block
  std::vector<uint32_t> held_;
  uint64_t parameters_ = 0;

  mutable Cuts cuts_;
  std::atomic<bool> closing_ = false;

  // Held while norms are computed or a step is applied: `compute_` serves one at a time. Taken before mutex_.
  absl::Mutex commit_mutex_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);
  std::optional<uint64_t> loading_ ABSL_GUARDED_BY(mutex_);  // the version that blocks are or were loaded at
  std::vector<bool> is_loaded_ ABSL_GUARDED_BY(mutex_);      // by block
  uint64_t loaded_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<v1::CommitReply> last_commit_ ABSL_GUARDED_BY(mutex_);  // the one that published version_
  v1::CommitRequest last_request_ ABSL_GUARDED_BY(mutex_);              // likewise
};

}  // namespace millrace::ps
