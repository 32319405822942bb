// Keeps jobs and their events in one SQLite file, so that a restarted coordinator knows what it was doing.
//
// Tables:
//   jobs(id TEXT PRIMARY KEY, place INTEGER, record BLOB)
//       place: in the queue and in lists; record: StoredJob as a Job message, with the two fields below beside it
//   job_files(id, base_directory TEXT, job_yaml BLOB)
//   events(job TEXT, sequence INTEGER, kind INTEGER, phase TEXT, step INTEGER, record BLOB)
//       kind: the field number of JobEvent's oneof; phase and step of steps, evaluations, samples and
//       checkpoints, else '' and 0
//   counters(name TEXT PRIMARY KEY, value INTEGER)
//       "epoch": the last one used; "place": the last one given
//   sweeps(id TEXT PRIMARY KEY, record BLOB)
//       record: Sweep
// Evaluations and checkpoints are events here; what training goes on from is in the checkpoints' manifests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "coordinator/sqlite.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

struct StoredJob {
  v1::Job job;
  std::string base_directory;  // what relative paths in the job are relative to
  std::string job_yaml;        // as submitted; may be empty
  uint64_t place = 0;          // in the queue
};

// Thread-safe. Each change is durable, whole, when its call returns OK. On a full disk calls fail with
// RESOURCE_EXHAUSTED and succeed again once there is space.
class JobStore {
 public:
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& path);

  // Adds the job under an id made of its name: the name, or "NAME-2", "NAME-3", … if that was taken. Returns it.
  absl::StatusOr<StoredJob> Insert(StoredJob job);
  absl::Status Update(const v1::Job& job);
  // Puts the job at the end of the queue with this state.
  absl::StatusOr<uint64_t> MoveToEnd(const v1::Job& job);
  absl::Status Delete(absl::string_view job_id);
  // All, in the order of their places.
  absl::StatusOr<std::vector<StoredJob>> Load();

  // Adds or replaces the sweep of this id.
  absl::Status PutSweep(const v1::Sweep& sweep);
  // All, in no order.
  absl::StatusOr<std::vector<v1::Sweep>> LoadSweeps();

  // An epoch above every earlier one and at least `least`.
  absl::StatusOr<uint64_t> NextEpoch(uint64_t least = 1);

  // Appends events, with sequences above all that are there, and the job's record with them.
  absl::Status AppendEvents(const v1::Job& job, absl::Span<const v1::JobEvent> events);
  // Up to `limit` events with a sequence above `after`, in order.
  absl::StatusOr<std::vector<v1::JobEvent>> ReadEvents(absl::string_view job_id, uint64_t after, int limit);
  absl::StatusOr<uint64_t> LastSequence(absl::string_view job_id);
  // Forgets steps, evaluations, samples and checkpoints of the phase after `step`: they will happen again.
  absl::Status Supersede(absl::string_view job_id, absl::string_view phase, uint64_t step);

 private:
  explicit JobStore(std::unique_ptr<Database> database) : database_(std::move(database)) {}
  absl::StatusOr<uint64_t> Count(absl::string_view name, uint64_t least) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const std::unique_ptr<Database> database_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace millrace::coordinator
