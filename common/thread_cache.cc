#include "common/thread_cache.h"

namespace millrace {

ThreadCache::~ThreadCache() {
  std::vector<std::unique_ptr<Resting>> threads;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& thread : threads_) {
      thread->ended = true;
      thread->changed.SignalAll();
    }
    threads = std::move(threads_);
  }
  for (const auto& thread : threads) thread->thread.join();
}

ThreadCache::Work ThreadCache::Start(std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  Resting* thread = nullptr;
  if (resting_.empty()) {
    threads_.push_back(std::make_unique<Resting>());
    thread = threads_.back().get();
    thread->thread = std::thread([this, thread] { Run(thread); });
  } else {
    thread = resting_.back();  // whose stack is warmest
    resting_.pop_back();
  }
  thread->work = std::move(work);
  thread->busy = true;
  thread->changed.SignalAll();
  return Work(this, thread);
}

void ThreadCache::Run(Resting* self) {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    while (!self->busy && !self->ended) self->changed.Wait(&mutex_);
    if (!self->busy) return;
    std::function<void()> work = std::move(self->work);
    mutex_.Unlock();
    work();
    work = nullptr;  // with what it holds, before anyone is told
    mutex_.Lock();
    self->busy = false;
    self->changed.SignalAll();
  }
}

void ThreadCache::Await(Resting* thread) {
  absl::MutexLock lock(&mutex_);
  while (thread->busy) thread->changed.Wait(&mutex_);
  resting_.push_back(thread);
}

void ThreadCache::Work::Join() {
  if (cache_ == nullptr) return;
  cache_->Await(thread_);
  cache_ = nullptr;
}

}  // namespace millrace
