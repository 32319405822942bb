// Takes jobs in and runs them one after another, first come first served; carries out pause, resume, cancel and delete.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/job_book.h"
#include "coordinator/job_control.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// How a run of a job ended, if not with an error.
struct JobOutcome {
  enum class Kind {
    kSucceeded,
    kPaused,     // as asked
    kStopped,    // the coordinator ends; the job goes on later
    kCancelled,  // as asked
  };
  Kind kind = Kind::kSucceeded;
  std::string stop_reason;  // kSucceeded: "max_steps", "patience", "rated"
};

// Thread-safe but for Run, which one thread calls once.
class JobQueue {
 public:
  // Runs a job to its end or until `control` asks otherwise; an error fails the job.
  using RunJob = std::function<absl::StatusOr<JobOutcome>(const StoredJob& job, const JobControl& control)>;
  // Removes what is kept of a job elsewhere than in its folder and the book.
  using ForgetJob = std::function<absl::Status(const std::string& job_id)>;
  // Says why a job, complete but for its id, must not be taken.
  using CheckJob = std::function<absl::Status(const StoredJob& job)>;
  struct Options {
    std::string directory;       // the coordinator's
    JobBook* book = nullptr;     // outlives the queue
    uint32_t jobs_per_user = 0;  // unfinished ones that a user may have; 0: any number
    RunJob run;
    ForgetJob forget;
    std::function<void()> wake;  // whatever `run` may wait in
    CheckJob check;              // may be null
  };
  explicit JobQueue(Options options) : options_(std::move(options)) {}

  // Checks the job (every field again: clients are not trusted), makes its folder and puts it in the queue, as the
  // service's SubmitJob says; of a request that only validates it returns a job without an id. `sweep_id`: whose trial
  // it is; may be empty.
  absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& request, const std::string& user = "",
                                 const std::string& sweep_id = "");
  absl::StatusOr<v1::Job> Update(const v1::UpdateJobRequest& request);
  // These return the job as it is right after the request: a running job first finishes what it has to.
  // FAILED_PRECONDITION says why the job's state does not allow it; asking again for what is so already is fine.
  absl::StatusOr<v1::Job> Pause(absl::string_view job_id);
  absl::StatusOr<v1::Job> Resume(absl::string_view job_id);  // also a failed or cancelled one, from its last checkpoint
  absl::StatusOr<v1::Job> Cancel(absl::string_view job_id, const std::string& stop_reason = "cancelled");
  absl::Status Delete(absl::string_view job_id);  // with all its files; not while it is to run

  // Runs jobs until Stop.
  void Run();
  void Stop();

  std::string running() const;

 private:
  void RunOne(const std::string& job_id);
  // The job of the request, and what is kept beside it.
  absl::StatusOr<StoredJob> Read(const v1::SubmitJobRequest& request) const;
  // The job that the user's key has made; empty: none. ALREADY_EXISTS if it is another than `wanted`.
  absl::StatusOr<std::optional<v1::Job>> MadeBefore(const StoredJob& wanted, const std::vector<v1::Job>& jobs) const;
  // Asks the job for `wish` if it is the one that runs.
  bool AskRunning(absl::string_view job_id, Wish wish);

  const Options options_;
  // Serialises changes of state by users with the start and end of runs. Taken before mutex_.
  absl::Mutex changing_;
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(changing_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::string running_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<JobControl> control_ ABSL_GUARDED_BY(mutex_);
};

// DIR/jobs/JOB.
std::string JobDirectory(absl::string_view directory, absl::string_view job_id);

}  // namespace millrace::coordinator
