// Carries what users and signals ask of the job that is running to the thread that runs it.
#pragma once

#include <atomic>
#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace millrace::coordinator {

// What is asked of a running job, the strongest last.
enum class Wish : int {
  kNone = 0,
  kPause = 1,   // finish the step, checkpoint, give the shards up
  kStop = 2,    // the coordinator ends: checkpoint now; the job goes on with the next coordinator
  kCancel = 3,  // give up now
};

// Thread-safe.
class JobControl {
 public:
  // `wake` wakes whatever the runner may be waiting in; called without a lock held.
  explicit JobControl(std::function<void()> wake) : wake_(std::move(wake)) {}

  // May be called under any lock.
  Wish wish() const { return wish_.load(); }

  // A weaker wish than the present one changes nothing.
  void Ask(Wish wish) {
    {
      absl::MutexLock lock(&mutex_);
      if (wish <= wish_.load()) return;
      wish_.store(wish);
      asked_.SignalAll();
    }
    if (wake_) wake_();
  }

  // Waits for `time`, or until anything is asked.
  void Pause(absl::Duration time) const {
    absl::MutexLock lock(&mutex_);
    const absl::Time until = absl::Now() + time;
    while (wish_.load() == Wish::kNone && !asked_.WaitWithDeadline(&mutex_, until)) {
    }
  }

 private:
  const std::function<void()> wake_;
  mutable absl::Mutex mutex_;
  mutable absl::CondVar asked_ ABSL_GUARDED_BY(mutex_);
  std::atomic<Wish> wish_ = Wish::kNone;
};

}  // namespace millrace::coordinator
