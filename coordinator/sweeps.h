// Runs sweeps: many jobs that differ in a few fields, of which those that do badly can be given up early.
//
// A trial is a job of its own in the queue. With halving (successive halving: Jamieson and Talwalkar, "Non-stochastic
// Best Arm Identification and Hyperparameter Optimization", AISTATS 2016) each trial is paused once it has been
// evaluated at the steps of a comparison; when all have come so far, those with the lowest held-out losses go on from
// their checkpoints and the others are cancelled. Which ones these are follows from the evaluations at exactly those
// steps, so that it depends on the cluster as little as a job's result does.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "coordinator/job_store.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

inline constexpr size_t kMostTrials = 1000;

// The trials of a sweep with its defaults filled in: the overrides of each. INVALID_ARGUMENT names the field that is
// wrong. A function of the sweep alone.
absl::StatusOr<std::vector<std::vector<std::string>>> TrialsOf(const v1::SweepSpec& sweep);

// Which of the trials that are compared go on: `losses` are theirs, NaN of those that failed. Of equals the first go
// on. Returns indices, rising; at least one, unless all failed.
std::vector<size_t> Survivors(const std::vector<double>& losses, double keep);

// Thread-safe.
class Sweeps {
 public:
  // What has been stored goes on. All outlive it.
  static absl::StatusOr<std::unique_ptr<Sweeps>> Open(JobStore* store, JobBook* book, JobQueue* queue);

  // Submits all trials or none. INVALID_ARGUMENT says what is wrong with the sweep or the job.
  absl::StatusOr<v1::Sweep> Start(const v1::StartSweepRequest& request, const std::string& user);
  absl::StatusOr<v1::Sweep> Get(absl::string_view sweep_id);
  std::vector<v1::Sweep> List();  // in the order in which they came
  absl::StatusOr<v1::Sweep> Cancel(absl::string_view sweep_id);

  // Looks what has become of the trials, pauses those that have reached a comparison, compares. Called after each
  // evaluation, and every second or so.
  void Tick();

 private:
  Sweeps(JobStore* store, JobBook* book, JobQueue* queue) : store_(store), book_(book), queue_(queue) {}
  absl::Status NotFound(absl::string_view sweep_id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Copies what the book knows into the sweep's trials; whether it has ended.
  void Refresh(v1::Sweep* sweep) const;
  // Notes the loss of a trial that has reached its next comparison. Whether something was noted.
  bool NoteLoss(const v1::SweepSpec& spec, v1::Trial* trial) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // If all trials that are left have reached the next comparison: who goes on.
  void Compare(v1::Sweep* sweep) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Store(const v1::Sweep& sweep);

  JobStore* const store_;
  JobBook* const book_;
  JobQueue* const queue_;
  absl::Mutex mutex_;
  std::map<std::string, v1::Sweep, std::less<>> sweeps_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> read_ ABSL_GUARDED_BY(mutex_);  // events of a job, up to this sequence
};

}  // namespace millrace::coordinator
