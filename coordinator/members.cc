#include "coordinator/members.h"

#include <openssl/rand.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::coordinator {
namespace {

constexpr size_t kMaxNameBytes = 256;

bool Printable(absl::string_view text) {
  return text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

absl::Status CheckRequest(const v1::JoinRequest& request) {
  if (request.role() != v1::WORKER && request.role() != v1::SHARD) {
    return absl::InvalidArgumentError(absl::StrCat("a member joins as WORKER or SHARD, not as role ", request.role()));
  }
  if (request.name().empty() || !Printable(request.name())) {
    return absl::InvalidArgumentError(absl::StrCat("a member's name is 1 to ", kMaxNameBytes,
                                                   " printable ASCII characters; got '",
                                                   absl::CHexEscape(request.name().substr(0, kMaxNameBytes)), "'"));
  }
  for (const std::string* field :
       {&request.address(), &request.conformance_digest(), &request.build(), &request.processor()}) {
    if (!Printable(*field)) {
      return absl::InvalidArgumentError(absl::StrCat("member '", request.name(), "': '",
                                                     absl::CHexEscape(field->substr(0, kMaxNameBytes)),
                                                     "' is not printable ASCII of at most ", kMaxNameBytes, " bytes"));
    }
  }
  if (request.role() == v1::SHARD && request.address().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("shard '", request.name(), "' gave no address"));
  }
  return absl::OkStatus();
}

// Keeps ids of a coordinator's former life from meaning somebody else now, and others from speaking for the member.
uint64_t Chance() {
  uint64_t number = 0;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&number), sizeof(number)) != 1) std::abort();
  return number;
}

}  // namespace

absl::StatusOr<v1::JoinReply> Members::Join(const v1::JoinRequest& request, absl::Time now,
                                            const std::string& identity) {
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  const bool shard = request.role() == v1::SHARD;
  const std::string& expected = shard ? options_.shard_conformance_digest : options_.worker_conformance_digest;
  if (request.conformance_digest() != expected) {
    return absl::PermissionDeniedError(
        absl::StrCat(shard ? "shard '" : "worker '", request.name(), "' (build ", request.build(), ", processor ",
                     request.processor(), ") computes other bits than this coordinator's build: conformance digest '",
                     request.conformance_digest(), "', expected '", expected,
                     "'; run the same build on every node, or report the processor"));
  }
  Member member;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, living] : members_) {
      if (living.name == request.name() && living.role == request.role()) {
        return absl::AlreadyExistsError(absl::StrCat(shard ? "shard '" : "worker '", request.name(),
                                                     "' is a living member already; choose another name"));
      }
    }
    if (members_.size() >= options_.limit) {
      return absl::ResourceExhaustedError(absl::StrCat("the cluster is full: ", options_.limit, " members"));
    }
    member.number = ++joined_;
    member.id = absl::StrFormat("%s-%d-%016x", shard ? "shard" : "worker", member.number, Chance());
    member.role = request.role();
    member.name = request.name();
    member.address = request.address();
    member.build = request.build();
    member.processor = request.processor();
    member.identity = identity;
    member.threads = request.threads();
    member.last_heard = now;
    members_.emplace(member.id, member);
  }
  if (options_.on_join) options_.on_join(member);
  Wake();
  v1::JoinReply reply;
  reply.set_member_id(member.id);
  reply.set_heartbeat_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat)));
  reply.set_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.lease)));
  return reply;
}

absl::Status Members::Hear(absl::string_view member_id, uint64_t resident_bytes, absl::Time now,
                           const std::string& identity) {
  absl::MutexLock lock(&mutex_);
  const auto member = members_.find(member_id);
  if (member == members_.end()) {
    return absl::NotFoundError(absl::StrCat("no member '", absl::CHexEscape(member_id.substr(0, kMaxNameBytes)),
                                            "' here (any more); join again"));
  }
  if (member->second.identity != identity) {
    return absl::PermissionDeniedError(absl::StrCat("member '", member->second.name,
                                                    "' joined with the certificate of another than ",
                                                    identity.empty() ? "who calls, who shows none" : identity));
  }
  member->second.last_heard = std::max(member->second.last_heard, now);
  if (resident_bytes > 0) member->second.resident_bytes = resident_bytes;
  return absl::OkStatus();
}

void Members::Remove(absl::string_view member_id, absl::string_view why) {
  std::optional<Member> gone;
  std::function<void()> released;
  {
    absl::MutexLock lock(&mutex_);
    const auto member = members_.find(member_id);
    if (member == members_.end()) return;
    gone = std::move(member->second);
    members_.erase(member);
    if (gone->role == v1::SHARD && (gone->held || !gone->leaving)) ++shard_losses_;
    if (const auto waiting = leaving_.find(member_id); waiting != leaving_.end()) {
      released = std::move(waiting->second);
      leaving_.erase(waiting);
    }
    changed_.SignalAll();
  }
  if (options_.on_loss) options_.on_loss(*gone, why);
  if (released) released();
}

void Members::Leave(absl::string_view member_id, std::function<void()> released) {
  std::optional<Member> leaves;
  {
    absl::MutexLock lock(&mutex_);
    const auto member = members_.find(member_id);
    if (member != members_.end() && member->second.role == v1::SHARD) {
      if (!member->second.leaving && member->second.held) {
        ++shard_departures_;
        leaves = member->second;
      }
      member->second.leaving = true;
      // Asked twice, the first call has nothing to wait for any more.
      if (member->second.held) std::swap(leaving_[member->first], released);
    }
  }
  if (released) released();
  if (leaves.has_value() && options_.on_leaving) options_.on_leaving(*leaves);
}

bool Members::Hold(const std::vector<std::string>& member_ids) {
  absl::MutexLock lock(&mutex_);
  for (const std::string& id : member_ids) {
    const auto member = members_.find(id);
    if (member == members_.end() || member->second.leaving) return false;
  }
  for (const std::string& id : member_ids) members_.find(id)->second.held = true;
  return true;
}

void Members::Release() {
  std::map<std::string, std::function<void()>, std::less<>> released;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [id, member] : members_) member.held = false;
    released.swap(leaving_);
  }
  for (const auto& [id, call] : released) call();
}

std::vector<std::string> Members::Expire(absl::Time now) {
  std::vector<std::string> silent;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, member] : members_) {
      if (now - member.last_heard > options_.lease) silent.push_back(id);
    }
  }
  for (const std::string& id : silent) Remove(id, absl::StrCat("silent for ", absl::FormatDuration(options_.lease)));
  return silent;
}

std::vector<Member> Members::Living(v1::MemberRole role) const {
  std::vector<Member> living;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, member] : members_) {
      if (member.role == role && !member.leaving) living.push_back(member);
    }
  }
  std::sort(living.begin(), living.end(), [](const Member& a, const Member& b) { return a.number < b.number; });
  return living;
}

size_t Members::Count(v1::MemberRole role) const {
  return std::count_if(members_.begin(), members_.end(),
                       [role](const auto& entry) { return entry.second.role == role && !entry.second.leaving; });
}

bool Members::Await(size_t shards, size_t workers, absl::Time deadline, absl::FunctionRef<bool()> interrupted) const {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    if (interrupted()) return false;
    if (Count(v1::SHARD) >= shards && Count(v1::WORKER) >= workers) return true;
    if (changed_.WaitWithDeadline(&mutex_, deadline)) return false;
  }
}

void Members::Wake() {
  absl::MutexLock lock(&mutex_);
  changed_.SignalAll();
}

}  // namespace millrace::coordinator
