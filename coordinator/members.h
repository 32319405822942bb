// Knows which workers and shards live: they join once, then speak every heartbeat; whoever is silent for a lease's
// length, or whose stream breaks, is gone at once. A shard that is to end says so first and is let go once the job that
// it holds weights of is safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::coordinator {

struct Member {
  std::string id;
  v1::MemberRole role = v1::MEMBER_ROLE_UNSPECIFIED;
  std::string name;
  std::string address;  // of a shard
  std::string build;
  std::string processor;
  std::string identity;  // whose certificate it joined with; empty: nobody was asked
  uint32_t threads = 0;
  uint64_t resident_bytes = 0;
  uint64_t number = 0;  // in the order of joining
  bool held = false;    // a shard that a job works with
  bool leaving = false;
  absl::Time last_heard;
};

// Thread-safe. Time comes in with each call. Callbacks are made without a lock held, from the calling thread.
class Members {
 public:
  struct Options {
    std::string worker_conformance_digest;
    std::string shard_conformance_digest;
    absl::Duration heartbeat = absl::Seconds(1);
    absl::Duration lease = absl::Seconds(10);
    size_t limit = 4096;  // members at a time
    std::function<void(const Member&)> on_join;
    std::function<void(const Member&, absl::string_view why)> on_loss;
    std::function<void(const Member&)> on_leaving;  // a shard that is held is to end
  };
  explicit Members(Options options) : options_(std::move(options)) {}

  // Admits a member. PERMISSION_DENIED for another conformance digest (naming member, build, processor and both
  // digests), ALREADY_EXISTS for the name of a living member, RESOURCE_EXHAUSTED above the limit, INVALID_ARGUMENT
  // for a request that no member sends. `identity`: whose certificate it shows, if any. Its id is of 64 bits of chance:
  // who was not told it does not find it.
  absl::StatusOr<v1::JoinReply> Join(const v1::JoinRequest& request, absl::Time now, const std::string& identity = "");

  // Notes a sign of life. NOT_FOUND: not a member (any more). PERMISSION_DENIED: it joined under another identity.
  absl::Status Hear(absl::string_view member_id, uint64_t resident_bytes, absl::Time now,
                    const std::string& identity = "");

  // Removes the member, if it still is one.
  void Remove(absl::string_view member_id, absl::string_view why);

  // Removes who has been silent for longer than the lease; returns their ids.
  std::vector<std::string> Expire(absl::Time now);

  // The shard is to end: no job takes it any more. Calls `released` once it may go: at once unless a job holds it, when
  // the job lets go of it, or when it is gone. For whoever holds nothing and is no member, at once.
  void Leave(absl::string_view member_id, std::function<void()> released);
  // A job works with these shards from now on. False, and nothing is held, if one of them is gone or leaving.
  bool Hold(const std::vector<std::string>& member_ids);
  // The job lets go of whatever it holds.
  void Release();

  // Living members of a role that are not leaving, in the order of joining.
  std::vector<Member> Living(v1::MemberRole role) const;

  // Counts shards ever lost, other than by Leave and `released`: a runner that remembers the number sees by it that one
  // of its shards may be gone. May be called under any lock.
  uint64_t shard_losses() const { return shard_losses_.load(); }
  // Counts shards that were held when they were to end; likewise.
  uint64_t shard_departures() const { return shard_departures_.load(); }

  // Waits until there are `shards` shards and `workers` workers, or `interrupted` (called under a lock, must not
  // block) says so after Wake(), or `deadline`. True: they are there.
  bool Await(size_t shards, size_t workers, absl::Time deadline, absl::FunctionRef<bool()> interrupted) const;
  void Wake();

 private:
  size_t Count(v1::MemberRole role) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  mutable absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Member, std::less<>> members_ ABSL_GUARDED_BY(mutex_);  // by id
  uint64_t joined_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::function<void()>, std::less<>> leaving_ ABSL_GUARDED_BY(mutex_);  // by id: to be called
  std::atomic<uint64_t> shard_losses_ = 0;
  std::atomic<uint64_t> shard_departures_ = 0;
};

}  // namespace millrace::coordinator
