// Serves a shard's blocks: fences epochs, finds the store that a call is for, and counts.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/compute.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "ps/attachments.h"
#include "ps/block_store.h"
#include "ps/shard_metrics.h"

namespace millrace::ps {

// The calls are what parameter_server.proto says, on gRPC's threads; a call that waits has one of its own.
class ParameterService final : public v1::ParameterServer::Service {
 public:
  // `threads` for norms and steps, the calling one included. `metrics` must outlive the service.
  ParameterService(int threads, ShardMetrics* metrics);
  ~ParameterService() override;

  // A newer epoch has begun: drops what belongs to an older one and wakes whoever waits there. Thread-safe.
  void Announce(uint64_t epoch);
  // Every block that this shard was configured to hold is loaded. Thread-safe.
  bool HasWhatItShould() const;
  // Ends whatever waits, and refuses calls from now on; before the server shuts down.
  void Close();

  grpc::Status Configure(grpc::ServerContext* context, const v1::ConfigureRequest* request,
                         v1::ConfigureReply* reply) override;
  grpc::Status Load(grpc::ServerContext* context, grpc::ServerReader<v1::LoadRequest>* stream,
                    v1::LoadReply* reply) override;
  grpc::Status Pull(grpc::ServerContext* context, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::PullReply>* stream) override;
  grpc::Status Push(grpc::ServerContext* context, grpc::ServerReader<v1::PushRequest>* stream,
                    v1::PushReply* reply) override;
  grpc::Status Norms(grpc::ServerContext* context, const v1::NormsRequest* request, v1::NormsReply* reply) override;
  grpc::Status Commit(grpc::ServerContext* context, const v1::CommitRequest* request, v1::CommitReply* reply) override;
  grpc::Status Snapshot(grpc::ServerContext* context, const v1::SnapshotRequest* request,
                        grpc::ServerWriter<v1::SnapshotReply>* stream) override;
  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      grpc::ServerWriter<v1::AttachReply>* stream) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::ShardStatusRequest* request,
                         v1::ShardStatus* reply) override;

 private:
  using Store = std::shared_ptr<BlockStore>;

  absl::Status DoConfigure(const v1::ConfigureRequest& request, v1::ConfigureReply* reply);
  absl::Status DoLoad(grpc::ServerReader<v1::LoadRequest>* stream, v1::LoadReply* reply);
  absl::Status DoPull(grpc::ServerContext* context, const v1::PullRequest& request,
                      grpc::ServerWriter<v1::PullReply>* stream);
  absl::Status DoPush(grpc::ServerReader<v1::PushRequest>* stream, v1::PushReply* reply);
  // What a worker asks for through memory that it shares, until `goes_on` says otherwise or something fails.
  absl::Status ServeShared(blocks::SharedPlane* plane, KeepWaiting goes_on);
  absl::Status PullShared(const v1::PullRequest& request, blocks::SharedPlane* plane, KeepWaiting goes_on);
  // The store at the version that is asked for, and the blocks.
  absl::StatusOr<Store> AwaitVersion(const v1::PullRequest& request, absl::FunctionRef<bool()> cancelled,
                                     std::vector<uint32_t>* blocks);
  // Counts a block that was pushed.
  void CountPush(const v1::PushRequest& request, size_t bytes, bool added, v1::PushReply* reply);
  absl::Status DoNorms(const v1::NormsRequest& request, v1::NormsReply* reply);
  absl::Status DoCommit(const v1::CommitRequest& request, v1::CommitReply* reply);
  absl::Status DoSnapshot(const v1::SnapshotRequest& request, grpc::ServerWriter<v1::SnapshotReply>* stream);

  // The store of `epoch`. FAILED_PRECONDITION says which epoch there is instead.
  absl::StatusOr<Store> Find(uint64_t epoch) const;
  absl::StatusOr<Store> FindLocked(uint64_t epoch) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Makes `epoch` the newest one and takes the store of an older one out, to be closed.
  Store BeginEpoch(uint64_t epoch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts the call if it was refused.
  grpc::Status Ended(const char* call, const absl::Status& status);

  const kernels::Compute compute_;
  ShardMetrics* const metrics_;
  Attachments attachments_;

  absl::Mutex configure_mutex_;  // one Configure at a time; before mutex_
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;         // the newest that is known
  Store store_ ABSL_GUARDED_BY(mutex_);                // of epoch_; null until configured
  std::string configuration_ ABSL_GUARDED_BY(mutex_);  // digest of the request that store_ was made by
  uint32_t shard_index_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::ps
