// Turns SIGINT and SIGTERM into a notification.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace millrace::cli {

// To be made in main's thread before any other thread starts: it blocks the two signals there, and threads inherit
// that. A second signal ends the process at once, with status 130 for SIGINT and 143 for SIGTERM. Also has writes to
// closed connections and pipes fail rather than kill the process.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  absl::Notification* notification() { return &asked_; }
  bool asked() const { return asked_.HasBeenNotified(); }
  // Has the first signal call this, on another thread; at once if it came already. Null: nothing any more, which waits
  // for a call that is under way.
  void Tell(std::function<void()> told);

 private:
  void Listen();

  sigset_t signals_;
  absl::Notification asked_;
  std::atomic<bool> ending_ = false;
  absl::Mutex mutex_;  // held during the call: `told` must not wait for this object
  std::function<void()> told_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace millrace::cli
