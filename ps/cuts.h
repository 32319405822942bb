// Holds versions while they are read: before a step changes a block that a reader has still to come to, the block is
// copied for that reader.
//
// Memory for copies is bounded. Where it is used up the step waits for the readers, who drain copies as they go; a
// reader that stands still for too long loses its version, so that training goes on.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::ps {

// Thread-safe.
class Cuts {
 public:
  struct Options {
    size_t limit_bytes = 0;                       // of copies; one piece may always be copied
    absl::Duration patience = absl::Seconds(60);  // with a reader that stands still while a step waits for it
    size_t most_readers = 8;
  };
  explicit Cuts(const Options& options) : options_(options) {}

  // One reader's version, until it is destroyed (before the Cuts). Reads each block once that is not left out.
  class Cut {
   public:
    ~Cut();
    uint64_t version() const { return version_; }
    bool LeavesOut(uint32_t block) const { return block < left_out_.size() && left_out_[block]; }

    // Gives `block` as it was at the version: `read` copies what the shard holds and returns false if that has passed
    // the version; then the copy made before is taken. An error says why the version is not held any more.
    absl::Status Take(uint32_t block, absl::FunctionRef<bool(v1::SnapshotReply* reply)> read, v1::SnapshotReply* reply);

   private:
    friend class Cuts;
    Cut(Cuts* cuts, uint64_t version, std::vector<bool> left_out)
        : cuts_(cuts), version_(version), left_out_(std::move(left_out)), moved_(absl::InfinitePast()) {}
    Cuts* const cuts_;
    const uint64_t version_;
    const std::vector<bool> left_out_;  // by block; none behind its end
    // Guarded by the Cuts' mutex.
    std::vector<bool> taken_;  // by block, as far as any was
    std::map<uint32_t, v1::SnapshotReply> copies_;
    absl::Time moved_;  // when a block was last taken
    absl::Status ended_;
  };

  // Requires that no step is being applied. `left_out`, by block: will not be read; none behind its end.
  // RESOURCE_EXHAUSTED: too many readers.
  absl::StatusOr<std::unique_ptr<Cut>> Open(uint64_t version, std::vector<bool> left_out = {});

  // Before a step changes blocks [first, first + count), at `version`: copies, by `copy`, those that readers have still
  // to come to. False if there is no room for `bytes` more of copies and `wait` is false, or after Close. With `wait`,
  // waits for room. Called by one thread at a time.
  bool Secure(uint64_t version, uint32_t first, uint32_t count, size_t bytes, bool wait,
              absl::FunctionRef<void(uint32_t block, v1::SnapshotReply* copy)> copy);

  // Ends all reading with `why`, which is not OK, and drops the copies.
  void Close(const absl::Status& why);

  // Memory of copies.
  size_t bytes() const {
    absl::MutexLock lock(&mutex_);
    return bytes_;
  }

 private:
  static size_t BytesOf(const v1::SnapshotReply& copy) { return copy.weights().size() + copy.state().size(); }
  bool Needs(const Cut& cut, uint64_t version, uint32_t block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AnyNeeds(uint64_t version, uint32_t block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AwaitRoom(uint64_t version, uint32_t first, uint32_t count, size_t bytes, bool wait);
  void End(Cut* cut, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  std::list<Cut*> open_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::ps
