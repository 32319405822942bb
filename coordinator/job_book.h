// Holds the present state of every job and its events: in memory for the runner and the watchers, written behind to
// the job store.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/job_store.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// Thread-safe. Adding, deleting and changes of state are durable when they return; progress and events cost no disk
// access and are durable after the next Flush.
class JobBook {
 public:
  using Now = std::function<absl::Time()>;
  // Loads what the store has. `store` must outlive the book.
  static absl::StatusOr<std::unique_ptr<JobBook>> Open(JobStore* store, Now now = &absl::Now);

  // Adds a job as QUEUED, under an id made of its name. Jobs are told their position in the queue where they are
  // returned.
  absl::StatusOr<v1::Job> Add(StoredJob job);
  absl::StatusOr<v1::Job> Get(absl::string_view job_id) const;  // NOT_FOUND names the jobs there are
  absl::StatusOr<StoredJob> GetStored(absl::string_view job_id) const;
  // All, in the order of their places.
  std::vector<v1::Job> List() const;
  // How often jobs have SUCCEEDED, FAILED or been CANCELLED since the book was opened; each run of a job counts.
  std::map<v1::Job::State, uint64_t> Endings() const;
  // How often events of the job have been forgotten.
  uint64_t Rewrites(absl::string_view job_id) const;
  absl::Status Delete(absl::string_view job_id);
  // The first job that is to run: one that ran when the coordinator ended, or the one in the queue with the highest
  // priority, of equals the first.
  std::optional<std::string> Next() const;

  // Changes the job's state, and whatever else `change` does to it; adds the state event; durable. If the store cannot
  // take it (full disk), the change holds in memory and the error is returned.
  absl::Status SetState(absl::string_view job_id, v1::Job::State state, absl::FunctionRef<void(v1::Job*)> change);
  // QUEUED again, at the end of the queue.
  absl::Status Requeue(absl::string_view job_id);

  // Changes progress fields of the job.
  void Update(absl::string_view job_id, absl::FunctionRef<void(v1::Job*)> change);
  // Adds an event, giving it its sequence and time. Jobs that are gone are ignored.
  void Append(absl::string_view job_id, v1::JobEvent event);
  void Log(absl::string_view job_id, absl::string_view severity, absl::string_view text);
  // Forgets steps, evaluations, samples and checkpoints of the phase after `step`.
  absl::Status Supersede(absl::string_view job_id, absl::string_view phase, uint64_t step);
  // Writes what is pending.
  absl::Status Flush();

  // Up to `limit` events after the sequence.
  absl::StatusOr<std::vector<v1::JobEvent>> Read(absl::string_view job_id, uint64_t after, int limit);
  // Waits until the job has an event after the sequence, or is gone, or `deadline`.
  void AwaitEvent(absl::string_view job_id, uint64_t after, absl::Time deadline) const;
  // Waits until something in the book has changed, or Wake was called, since `*seen` (which it updates).
  void AwaitChange(uint64_t* seen) const;
  void Wake();

 private:
  struct Entry {
    StoredJob stored;
    uint64_t last_sequence = 0;
    std::vector<v1::JobEvent> pending;  // not in the store yet; last of all sequences
    bool dirty = false;
    uint64_t rewrites = 0;
  };
  JobBook(JobStore* store, Now now) : store_(store), now_(std::move(now)) {}
  Entry* Find(absl::string_view job_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AppendLocked(Entry* entry, v1::JobEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FlushLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writing_);
  absl::Status NotFound(absl::string_view job_id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  JobStore* const store_;
  const Now now_;
  // Taken before mutex_; held while the store works, so that readers see an event either in the store or pending.
  absl::Mutex writing_ ABSL_ACQUIRED_BEFORE(mutex_);
  mutable absl::Mutex mutex_;
  mutable absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Entry, std::less<>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<v1::Job::State, uint64_t> endings_ ABSL_GUARDED_BY(mutex_);
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// SUCCEEDED, FAILED or CANCELLED.
bool HasEnded(v1::Job::State state);

}  // namespace millrace::coordinator
