#include "ps/attachments.h"

#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/status/statusor.h"

namespace millrace::ps {

absl::Status Attachments::Serve(
    grpc::ServerContext* context, const v1::AttachRequest& request, grpc::ServerWriter<v1::AttachReply>* stream,
    absl::FunctionRef<absl::Status(blocks::SharedPlane* plane, KeepWaiting goes_on)> serve) {
  v1::AttachReply reply;
  const absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> plane =
      blocks::SharedPlane::Open(request.memory(), request.workers_digest());
  if (!plane.ok() || !Enter(plane->get())) {
    stream->Write(reply);
    return absl::OkStatus();
  }
  const absl::Cleanup leave = [&] { Leave(plane->get()); };
  reply.set_shards_digest((*plane)->ShardsDigest());
  if (!stream->Write(reply)) return absl::OkStatus();
  return serve(plane->get(), [&] { return !closed() && !context->IsCancelled(); });
}

bool Attachments::Enter(blocks::SharedPlane* plane) {
  absl::MutexLock lock(&mutex_);
  if (closed_ || attached_.size() == kMost) return false;
  attached_.insert(plane);
  count_->Set(static_cast<double>(attached_.size()));
  return true;
}

void Attachments::Leave(blocks::SharedPlane* plane) {
  absl::MutexLock lock(&mutex_);
  attached_.erase(plane);
  count_->Set(static_cast<double>(attached_.size()));
}

bool Attachments::closed() {
  absl::MutexLock lock(&mutex_);
  return closed_;
}

void Attachments::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (blocks::SharedPlane* const plane : attached_) plane->Interrupt();
}

}  // namespace millrace::ps
