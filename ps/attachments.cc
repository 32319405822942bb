#include "ps/attachments.h"

#include <utility>

#include "absl/status/status.h"
#include "common/status.h"

namespace millrace::ps {

void Attachments::Serve(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream) {
  v1::AttachRequest request;
  if (!stream->Read(&request)) return;
  v1::AttachReply reply;
  absl::StatusOr<std::unique_ptr<blocks::SharedPlane>> plane =
      blocks::SharedPlane::Open(request.memory(), request.workers_digest());
  if (plane.ok()) {
    const std::string digest = (*plane)->ShardsDigest();
    // Nobody can guess what only the two ends have seen.
    const std::string id = request.workers_digest() + digest;
    if (Enter(id, *std::move(plane), context)) {
      reply.set_attachment(id);
      reply.set_shards_digest(digest);
    }
  }
  const bool written = stream->Write(reply);
  if (reply.attachment().empty()) return;
  // On a thread of the server, as a pull waits for its version.
  while (written && stream->Read(&request)) {
  }
  Leave(reply.attachment(), context);
}

bool Attachments::Enter(const std::string& id, std::shared_ptr<blocks::SharedPlane> plane,
                        grpc::ServerContext* context) {
  absl::MutexLock lock(&mutex_);
  if (closed_ || attached_.size() == kMost) return false;
  attached_[id] = {std::move(plane), std::make_shared<std::atomic<bool>>(false),
                   std::make_shared<std::atomic<bool>>(false)};
  calls_.insert(context);
  count_->Set(static_cast<double>(attached_.size()));
  return true;
}

void Attachments::Leave(const std::string& id, grpc::ServerContext* context) {
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
