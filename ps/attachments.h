// Keeps the memory that workers of this machine share with the shard, each as long as its call lasts.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/sync_stream.h>

#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
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

  // Answers a worker's offer. If the memory is shared, `serve` has it until the worker is gone, or Close, which
  // `goes_on` tells; returns what `serve` returns.
  absl::Status Serve(grpc::ServerContext* context, const v1::AttachRequest& request,
                     grpc::ServerWriter<v1::AttachReply>* stream,
                     absl::FunctionRef<absl::Status(blocks::SharedPlane* plane, KeepWaiting goes_on)> serve);
  // Ends all, and refuses what comes later.
  void Close();

 private:
  // False if there may be no more.
  bool Enter(blocks::SharedPlane* plane);
  void Leave(blocks::SharedPlane* plane);
  bool closed();

  prometheus::Gauge* const count_;
  absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<blocks::SharedPlane*> attached_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::ps
