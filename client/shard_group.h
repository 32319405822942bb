// Calls all parameter-server shards of an epoch as one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "common/thread_cache.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace millrace::client {

// One unit's coded gradients on their way to the shards, block by block, while the caller computes on. A sending
// thread for each shard; what waits there is bounded, so that Add waits for a slow shard.
class GradientPush {
 public:
  // Gives up what is not finished.
  virtual ~GradientPush() = default;
  // Sends a block once. Returns the first error of any shard.
  virtual absl::Status Add(uint32_t block, const blocks::Coding& coding, std::string values, uint64_t saturated) = 0;
  // Waits until every shard has taken in all that was added.
  virtual absl::Status Finish() = 0;
};

// A version that every shard holds while its blocks are read.
class ShardSnapshot {
 public:
  virtual ~ShardSnapshot() = default;
  // Gives every block that is wanted to `sink` once, from a thread a shard; the first error ends it.
  virtual absl::Status Read(absl::FunctionRef<absl::Status(const v1::SnapshotReply& block)> sink) = 0;
  // Makes Read return CANCELLED soon; from any thread.
  virtual void Cancel() = 0;
};

// Thread-safe. Errors name the shard by its address. CANCELLED after Cancel; otherwise UNAVAILABLE,
// FAILED_PRECONDITION and DEADLINE_EXCEEDED mean that the shards have to be configured anew. What arrives is compared
// with its checksum: DATA_LOSS.
class ShardGroup {
 public:
  // Connects on first use. `addresses` in the order of the shards' indices, not empty. With `share_memory`, blocks are
  // pulled and pushed through memory that is shared with those shards that are on this machine.
  // `credentials`: null for plain TCP.
  ShardGroup(uint64_t epoch, std::vector<std::string> addresses, bool share_memory = false,
             const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);
  ~ShardGroup();
  ShardGroup(const ShardGroup&) = delete;
  ShardGroup& operator=(const ShardGroup&) = delete;

  uint64_t epoch() const { return epoch_; }
  size_t size() const { return addresses_.size(); }

  // Says which blocks there are and which shard holds which; before any call below. `blocks` outlives the group.
  void Place(const blocks::BlockTable* blocks, const v1::OptimizerSpec& optimizer);

  // Ends all calls, now and from now on.
  void Cancel();

  // ---- for workers ----
  enum class Which { kAll, kTrainable };
  // Streams the weights of the blocks at `version` in the table's order to `sink`, from a thread a shard; waits for the
  // version while it lies ahead. Blocks of tensors that are not trainable are the same at every version. The weights
  // are little-endian and of the block's size, each of the optimizer's weight_bits; `weights` is good during the call.
  absl::Status Pull(
      uint64_t version,
      absl::FunctionRef<absl::Status(uint32_t block, absl::string_view weights, const blocks::Coding& coding)> sink,
      Which which = Which::kAll);
  // Starts pushing what `unit` adds to the step after `version`.
  std::unique_ptr<GradientPush> Push(uint64_t version, uint32_t unit);
  // Loads every block at `version`: `source` fills in weights, and state and coding if there are any; it is called from
  // a thread a shard. Also for the coordinator.
  absl::Status Load(uint64_t version, absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source);
  // Once every block is loaded at `version`, and before anything has been pushed: loads those again that `which` says.
  // Does nothing to blocks that have been pushed to.
  absl::Status Replace(uint64_t version, absl::FunctionRef<bool(uint32_t block)> which,
                       absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source);

  // ---- for the coordinator ----
  // `request`: everything but epoch, shard_index and shard_count.
  absl::Status Configure(const v1::ConfigureRequest& request);
  // The squared gradient norms of all blocks, by block index, and the count of clipped values; scores, if they are
  // asked for, of the blocks that have them (BlockTable::ScoresOf).
  struct BlockNorms {
    std::vector<double> squared;
    std::vector<std::vector<double>> scores;  // by block
    uint64_t saturated = 0;
  };
  // `request`: everything but epoch.
  absl::StatusOr<BlockNorms> Norms(v1::NormsRequest request);
  // Returns the learning rate used. `request`: everything but epoch.
  absl::StatusOr<double> Commit(v1::CommitRequest request);
  // Returns once every shard holds `version`. The blocks of the tensors that are `left_out`, by index, do not come.
  absl::StatusOr<std::unique_ptr<ShardSnapshot>> Snapshot(uint64_t version, absl::Span<const uint32_t> left_out = {});

 private:
  struct Shard;
  class Attachment;
  class Use;
  class Pusher;
  class Cut;

  // A block of a pull, through gRPC's messages or shared memory. `next`: how many of those `wanted` came.
  using Sink = absl::FunctionRef<absl::Status(uint32_t block, absl::string_view weights, const blocks::Coding& coding)>;
  absl::Status Take(Shard& shard, absl::Span<const uint32_t> wanted, const v1::PullReply& reply,
                    absl::string_view weights, size_t* next, Sink sink) const;
  absl::Status PullMessages(Shard& shard, const v1::PullRequest& request, absl::Span<const uint32_t> wanted,
                            size_t* next, Sink sink) const;
  absl::Status PullShared(Shard& shard, v1::PullRequest request, absl::Span<const uint32_t> wanted, size_t* next,
                          Use* use, Sink sink) const;
  // The memory that is shared with a shard, for one pull or push; null if there is none, or it is in use.
  std::unique_ptr<Use> BeginUse(Shard* shard) const;

  // Calls each shard on a thread of its own and returns the first error, after cancelling the others.
  absl::Status OnEach(absl::FunctionRef<absl::Status(Shard&)> call);
  absl::Status LoadBlocks(uint64_t version, bool again, absl::FunctionRef<bool(uint32_t block)> which,
                          absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source);

  const uint64_t epoch_;
  const std::vector<std::string> addresses_;
  const bool share_memory_;
  const blocks::BlockTable* blocks_ = nullptr;
  ThreadCache threads_;  // outlives what the shards do
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<uint32_t> shard_of_;  // by block
  size_t weight_bytes_ = 0;         // of one that is pulled
};

}  // namespace millrace::client
