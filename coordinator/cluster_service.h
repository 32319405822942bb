// Serves workers and shards: joining, attendance and work.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/members.h"
#include "coordinator/work_board.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"

namespace millrace::coordinator {

// Attend and NextWork are served by callbacks, so that neither a member nor a worker that waits costs a thread.
class ClusterService
    : public v1::Cluster::WithCallbackMethod_NextWork<v1::Cluster::WithCallbackMethod_Attend<v1::Cluster::Service>> {
 public:
  // `members` and `board` must outlive this, and this the server.
  ClusterService(Members* members, WorkBoard* board, uint32_t units_per_call)
      : members_(members), board_(board), units_per_call_(units_per_call) {}
  ~ClusterService() override;

  grpc::Status Join(grpc::ServerContext* context, const v1::JoinRequest* request, v1::JoinReply* reply) override;
  grpc::ServerUnaryReactor* NextWork(grpc::CallbackServerContext* context, const v1::NextWorkRequest* request,
                                     v1::NextWorkReply* reply) override;
  grpc::ServerBidiReactor<v1::Heartbeat, v1::Notice>* Attend(grpc::CallbackServerContext* context) override;

  // Tells every member that `epoch` has begun.
  void Announce(uint64_t epoch);
  // Ends the member's stream.
  void Dismiss(const std::string& member_id, absl::string_view why);
  // Ends every stream, and NextWork's waiting; before the server shuts down.
  void Close();

 private:
  class Attendance;

  // What a call for work says of the work before.
  absl::Status TakeIn(const v1::NextWorkRequest& request, const std::string& identity);

  Members* const members_;
  WorkBoard* const board_;
  const uint32_t units_per_call_;
  absl::Mutex mutex_;
  absl::CondVar all_ended_ ABSL_GUARDED_BY(mutex_);                         // attendances_ is empty
  std::map<Attendance*, std::string> attendances_ ABSL_GUARDED_BY(mutex_);  // → member id, empty until it spoke
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace millrace::coordinator
