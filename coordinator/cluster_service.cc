#include "coordinator/cluster_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/access.h"
#include "common/grpc_status.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

constexpr uint32_t kLongestWaitMs = 60'000;
constexpr int kMostResults = 1024;

// Under TLS a member joins as what its certificate says: a worker must not be taken for a shard.
absl::Status CheckRole(const grpc::ServerContext& context, v1::MemberRole wanted) {
  const std::shared_ptr<const grpc::AuthContext> connection = context.auth_context();
  if (connection == nullptr || !IsEncrypted(*connection)) return absl::OkStatus();
  const absl::StatusOr<Role> role = CertificateRole(*connection);
  if (!role.ok()) return role.status();
  if (*role == (wanted == v1::SHARD ? Role::kShard : Role::kWorker)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("a ", RoleName(*role), "'s certificate does not let it join as ", v1::MemberRole_Name(wanted)));
}

// Whose certificate the call shows: the same when it is renewed. Empty without TLS.
template <typename Context>
std::string IdentityOf(const Context& context) {
  const std::shared_ptr<const grpc::AuthContext> connection = context.auth_context();
  if (connection == nullptr || !IsEncrypted(*connection)) return "";
  const absl::StatusOr<Role> role = CertificateRole(*connection);
  return absl::StrCat(role.ok() ? RoleName(*role) : "nobody", " '", CertificateName(*connection), "'");
}

}  // namespace

// One member's stream. Deletes itself when gRPC is done with it.
class ClusterService::Attendance : public grpc::ServerBidiReactor<v1::Heartbeat, v1::Notice> {
 public:
  Attendance(ClusterService* service, std::string identity) : service_(service), identity_(std::move(identity)) {}

  void Read() {
    absl::MutexLock lock(&mutex_);
    if (!ended_) StartRead(&heartbeat_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      // The member ended its side, or the connection broke.
      End(grpc::Status::OK);
      return;
    }
    if (const absl::Status heard = Hear(); !heard.ok()) {
      End(ToGrpc(heard));
      return;
    }
    Read();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (ok && !ended_ && waiting_) Write();
  }

  void OnDone() override {
    if (!member_id_.empty()) service_->members_->Remove(member_id_, "its stream ended");
    {
      absl::MutexLock lock(&service_->mutex_);
      service_->attendances_.erase(this);
      if (service_->attendances_.empty()) service_->all_ended_.SignalAll();
    }
    delete this;
  }

  // Thread-safe; only the newest epoch matters.
  void SendEpoch(uint64_t epoch) {
    absl::MutexLock lock(&mutex_);
    next_.set_epoch(epoch);
    waiting_ = true;
    if (!writing_ && !ended_) Write();
  }

  // Thread-safe.
  void End(const grpc::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (ended_) return;
      ended_ = true;
    }
    Finish(status);
  }

 private:
  absl::Status Hear() {
    const std::string& id = heartbeat_.member_id();
    if (!member_id_.empty() && id != member_id_) {
      return absl::InvalidArgumentError("a stream of heartbeats changed its member id");
    }
    MILLRACE_RETURN_IF_ERROR(service_->members_->Hear(id, heartbeat_.resident_bytes(), absl::Now(), identity_));
    if (!member_id_.empty()) return absl::OkStatus();
    absl::MutexLock lock(&service_->mutex_);
    for (const auto& [attendance, member] : service_->attendances_) {
      // The end of either stream would be the member's.
      if (member == id)
        return absl::AlreadyExistsError("the member has a stream of heartbeats; join again for another");
    }
    // From now on this stream's end is the member's.
    member_id_ = id;
    service_->attendances_[this] = id;
    if (service_->epoch_ > 0) SendEpoch(service_->epoch_);
    return absl::OkStatus();
  }

  void Write() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    notice_ = next_;
    waiting_ = false;
    writing_ = true;
    StartWrite(&notice_);
  }

  ClusterService* const service_;
  const std::string identity_;
  v1::Heartbeat heartbeat_;  // only the reading reaction's
  std::string member_id_;    // likewise
  absl::Mutex mutex_;
  v1::Notice notice_ ABSL_GUARDED_BY(mutex_);  // being written
  v1::Notice next_ ABSL_GUARDED_BY(mutex_);
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

ClusterService::~ClusterService() {
  // The server has ended every stream by now.
  absl::MutexLock lock(&mutex_);
  while (!attendances_.empty()) all_ended_.Wait(&mutex_);
}

grpc::Status ClusterService::Join(grpc::ServerContext* context, const v1::JoinRequest* request, v1::JoinReply* reply) {
  if (absl::Status fits = CheckRole(*context, request->role()); !fits.ok()) return ToGrpc(fits);
  absl::StatusOr<v1::JoinReply> joined = members_->Join(*request, absl::Now(), IdentityOf(*context));
  if (!joined.ok()) return ToGrpc(joined.status());
  *reply = *std::move(joined);
  return grpc::Status::OK;
}

absl::Status ClusterService::TakeIn(const v1::NextWorkRequest& request, const std::string& identity) {
  if (request.results_size() > kMostResults) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.results_size(), " results in one call; at most ", kMostResults));
  }
  MILLRACE_RETURN_IF_ERROR(members_->Hear(request.member_id(), 0, absl::Now(), identity));
  board_->Report(request.member_id(), std::vector<v1::WorkResult>(request.results().begin(), request.results().end()));
  if (request.drain()) board_->Dismiss(request.member_id());
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* ClusterService::NextWork(grpc::CallbackServerContext* context,
                                                   const v1::NextWorkRequest* request, v1::NextWorkReply* reply) {
  grpc::ServerUnaryReactor* const call = context->DefaultReactor();
  const absl::Status taken = TakeIn(*request, IdentityOf(*context));
  if (!taken.ok()) {
    call->Finish(ToGrpc(taken));
    return call;
  }
  if (request->drain()) {
    // A shard waits here until it may go. Should it not wait so long, its stream's end ends the call.
    members_->Leave(request->member_id(), [call] { call->Finish(grpc::Status::OK); });
    return call;
  }
  const absl::Time deadline = absl::Now() + absl::Milliseconds(std::min(request->wait_ms(), kLongestWaitMs));
  board_->Take(request->member_id(), units_per_call_, deadline,
               [=, this](absl::StatusOr<std::vector<v1::WorkUnit>> units) {
                 if (units.ok() && context->IsCancelled()) {
                   board_->Return(*units);
                   units = absl::CancelledError("the worker gave the call up");
                 }
                 if (!units.ok()) return call->Finish(ToGrpc(units.status()));
                 for (v1::WorkUnit& unit : *units) *reply->add_units() = std::move(unit);
                 call->Finish(grpc::Status::OK);
               });
  return call;
}

grpc::ServerBidiReactor<v1::Heartbeat, v1::Notice>* ClusterService::Attend(grpc::CallbackServerContext* context) {
  auto* const attendance = new Attendance(this, IdentityOf(*context));
  bool closed;
  {
    absl::MutexLock lock(&mutex_);
    attendances_.emplace(attendance, "");
    closed = closed_;
  }
  if (closed) {
    attendance->End(ToGrpc(absl::UnavailableError("the coordinator is shutting down")));
  } else {
    attendance->Read();
  }
  return attendance;
}

void ClusterService::Announce(uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  epoch_ = epoch;
  for (const auto& [attendance, member] : attendances_) {
    if (!member.empty()) attendance->SendEpoch(epoch);
  }
}

void ClusterService::Dismiss(const std::string& member_id, absl::string_view why) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [attendance, member] : attendances_) {
    // Not deleted meanwhile: OnDone takes this mutex first.
    if (member == member_id) attendance->End(ToGrpc(absl::DeadlineExceededError(why)));
  }
}

void ClusterService::Close() {
  for (const Member& worker : members_->Living(v1::WORKER)) board_->Dismiss(worker.id);
  members_->Release();
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (const auto& [attendance, member] : attendances_) {
    attendance->End(ToGrpc(absl::UnavailableError("the coordinator is shutting down")));
  }
}

}  // namespace millrace::coordinator
