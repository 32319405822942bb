#include "ps/attachments.h"

#include <utility>

#include "absl/status/status.h"
#include "common/status.h"

namespace millrace::ps {

void Attachments::Serve(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream) {
  v1::AttachRequest request;
  v1::AttachReply reply;
  if (!stream->Read(&request)) return;
  absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> plane = blocks::SharedPlane::Open(request.memory());
  if (!plane.ok()) {
    stream->Write(reply);
    return;
  }
  reply.set_workers_digest((*plane)->WorkersDigest());
  reply.set_shards_digest((*plane)->ShardsDigest());
  // Nobody can guess what only the two ends have seen.
  const std::string id = reply.workers_digest() + reply.shards_digest();
  reply.set_attachment(id);
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    attached_[id] = {*std::move(plane), std::make_shared<std::atomic<bool>>(false),
                     std::make_shared<std::atomic<bool>>(false)};
    calls_.insert(context);
    count_->Set(static_cast<double>(attached_.size()));
  }
  if (stream->Write(reply)) {
    while (stream->Read(&request)) {
    }
  }
  absl::MutexLock lock(&mutex_);
  attached_.erase(id);
  calls_.erase(context);
  count_->Set(static_cast<double>(attached_.size()));
}

absl::StatusOr<Attachments::Attachment> Attachments::Find(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  const auto found = attached_.find(id);
  if (found == attached_.end()) return absl::FailedPreconditionError("there is no such attachment (any more)");
  return found->second;
}

absl::StatusOr<std::unique_ptr<Attachments::Use>> Attachments::UseOf(std::shared_ptr<blocks::SharedPlane> plane,
                                                                     std::shared_ptr<std::atomic<bool>> busy,
                                                                     SharedRing* ring) {
  if (busy->exchange(true)) return absl::FailedPreconditionError("another call uses the attachment");
  return std::make_unique<Use>(std::move(plane), std::move(busy), ring);
}

absl::StatusOr<std::unique_ptr<Attachments::Use>> Attachments::Pull(const std::string& id) {
  MILLRACE_ASSIGN_OR_RETURN(const Attachment found, Find(id));
  return UseOf(found.plane, found.pulling, found.plane->pull());
}

absl::StatusOr<std::unique_ptr<Attachments::Use>> Attachments::Push(const std::string& id) {
  MILLRACE_ASSIGN_OR_RETURN(const Attachment found, Find(id));
  return UseOf(found.plane, found.pushing, found.plane->push());
}

void Attachments::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (grpc::ServerContext* const call : calls_) call->TryCancel();
}

}  // namespace millrace::ps
