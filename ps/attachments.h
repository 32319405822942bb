// Keeps the memory that workers of this machine share with the shard, each as long as its call lasts.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "blocks/shared_plane.h"
#include "common/metrics.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"

namespace millrace::ps {

// Thread-safe.
class Attachments {
 public:
  // More workers than one machine has. Each holds memory and a thread of the server.
  static constexpr size_t kMost = 256;

  // `count` follows how many there are.
  explicit Attachments(prometheus::Gauge* count) : count_(count) {}

  // One direction of an attachment, for one call at a time.
  class Use {
   public:
    Use(std::shared_ptr<blocks::SharedPlane> plane, std::shared_ptr<std::atomic<bool>> busy, SharedRing* ring)
        : plane_(std::move(plane)), busy_(std::move(busy)), ring_(ring) {}
    ~Use() { *busy_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    SharedRing* ring() const { return ring_; }

   private:
    const std::shared_ptr<blocks::SharedPlane> plane_;
    const std::shared_ptr<std::atomic<bool>> busy_;
    SharedRing* const ring_;
  };

  // Serves a worker's offer until the worker ends the call.
  void Serve(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream);
  // FAILED_PRECONDITION: there is no such attachment (any more), or another call uses it.
  absl::StatusOr<std::unique_ptr<Use>> Pull(const std::string& id);
  absl::StatusOr<std::unique_ptr<Use>> Push(const std::string& id);
  // Ends all, and refuses what comes later.
  void Close();

 private:
  struct Attachment {
    std::shared_ptr<blocks::SharedPlane> plane;
    std::shared_ptr<std::atomic<bool>> pulling, pushing;
  };
  static absl::StatusOr<std::unique_ptr<Use>> UseOf(std::shared_ptr<blocks::SharedPlane> plane,
                                                    std::shared_ptr<std::atomic<bool>> busy, SharedRing* ring);
  absl::StatusOr<Attachment> Find(const std::string& id);
  // False if there may be no more.
  bool Enter(const std::string& id, std::shared_ptr<blocks::SharedPlane> plane, grpc::ServerContext* context);
  void Leave(const std::string& id, grpc::ServerContext* context);

  prometheus::Gauge* const count_;
  absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, Attachment> attached_ ABSL_GUARDED_BY(mutex_);
  std::set<grpc::ServerContext*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::ps
