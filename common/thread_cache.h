// Threads that rest between pieces of work: a new one costs more than a small piece, and as much again when it ends.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace millrace {

// Thread-safe. Has as many threads as pieces of work were ever done at once.
class ThreadCache {
 public:
  ThreadCache() = default;
  // Requires that all work has been waited for.
  ~ThreadCache();
  ThreadCache(const ThreadCache&) = delete;
  ThreadCache& operator=(const ThreadCache&) = delete;

 private:
  struct Resting;

 public:
  // Work that has been started, or nothing. Waited for at the latest when it is destroyed.
  class Work {
   public:
    Work() = default;
    Work(Work&& other) noexcept { *this = std::move(other); }
    Work& operator=(Work&& other) noexcept {
      Join();
      cache_ = std::exchange(other.cache_, nullptr);
      thread_ = std::exchange(other.thread_, nullptr);
      return *this;
    }
    ~Work() { Join(); }

    bool joinable() const { return cache_ != nullptr; }
    // Returns when it is done; at once if there is nothing.
    void Join();

   private:
    friend class ThreadCache;
    Work(ThreadCache* cache, Resting* thread) : cache_(cache), thread_(thread) {}
    ThreadCache* cache_ = nullptr;
    Resting* thread_ = nullptr;
  };

  // Calls `work` on a thread of its own.
  Work Start(std::function<void()> work);

 private:
  struct Resting {
    std::function<void()> work;
    absl::CondVar changed;
    bool busy = false;
    bool ended = false;
    std::thread thread;
  };

  void Run(Resting* self);
  void Await(Resting* thread);

  absl::Mutex mutex_;
  std::vector<std::unique_ptr<Resting>> threads_ ABSL_GUARDED_BY(mutex_);  // their fields too
  std::vector<Resting*> resting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
