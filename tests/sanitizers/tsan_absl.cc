// Tells ThreadSanitizer about Abseil's locks. Debian's Abseil is not instrumented: without this every absl::Mutex would
// be invisible, and everything that it guards a race. In a build with -fsanitize=thread these definitions take the
// place of the library's, in our code and in gRPC's; each calls the library's own and annotates it as Abseil's
// instrumented build does. What is simple enough (Notification, absl::Status' count) is defined again as it is there.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace {

// The library's own functions use each other: only the outermost one is annotated.
thread_local int depth = 0;

struct Nested {
  Nested() { ++depth; }
  ~Nested() { --depth; }
  bool outermost() const { return depth == 1; }
};

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

template <typename Call>
void Locking(absl::Mutex* mutex, unsigned flags, Call call) {
  const Nested nested;
  if (nested.outermost()) __tsan_mutex_pre_lock(mutex, flags);
  call();
  if (nested.outermost()) __tsan_mutex_post_lock(mutex, flags, 0);
}

// `call` takes the lock and tells whether it has it.
template <typename Call>
bool TryingToLock(absl::Mutex* mutex, unsigned flags, Call call) {
  const Nested nested;
  flags |= __tsan_mutex_try_lock;
  if (nested.outermost()) __tsan_mutex_pre_lock(mutex, flags);
  const bool locked = call();
  if (nested.outermost()) __tsan_mutex_post_lock(mutex, locked ? flags : flags | __tsan_mutex_try_lock_failed, 0);
  return locked;
}

template <typename Call>
void Unlocking(absl::Mutex* mutex, unsigned flags, Call call) {
  const Nested nested;
  if (nested.outermost()) __tsan_mutex_pre_unlock(mutex, flags);
  call();
  if (nested.outermost()) __tsan_mutex_post_unlock(mutex, flags);
}

// `call` gives the lock up for a while and has it again at the end.
template <typename Call>
auto Waiting(absl::Mutex* mutex, Call call) {
  const Nested nested;
  if (nested.outermost()) {
    __tsan_mutex_pre_unlock(mutex, 0);
    __tsan_mutex_post_unlock(mutex, 0);
    __tsan_mutex_pre_lock(mutex, 0);
  }
  struct Again {
    absl::Mutex* const mutex;
    const bool outermost;
    ~Again() {
      if (outermost) __tsan_mutex_post_lock(mutex, 0, 0);
    }
  } const again{mutex, nested.outermost()};
  return call();
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

#define MILLRACE_REAL(type, name) static const auto real = Real<type>("_ZN4absl7debian3" name)

Mutex::~Mutex() {
  MILLRACE_REAL(void(Mutex*), "5MutexD1Ev");
  const Nested nested;
  if (nested.outermost()) __tsan_mutex_destroy(this, __tsan_mutex_not_static);
  real(this);
}
void Mutex::Lock() {
  MILLRACE_REAL(void(Mutex*), "5Mutex4LockEv");
  Locking(this, 0, [this] { real(this); });
}
void Mutex::Unlock() {
  MILLRACE_REAL(void(Mutex*), "5Mutex6UnlockEv");
  Unlocking(this, 0, [this] { real(this); });
}
bool Mutex::TryLock() {
  MILLRACE_REAL(bool(Mutex*), "5Mutex7TryLockEv");
  return TryingToLock(this, 0, [this] { return real(this); });
}
void Mutex::ReaderLock() {
  MILLRACE_REAL(void(Mutex*), "5Mutex10ReaderLockEv");
  Locking(this, __tsan_mutex_read_lock, [this] { real(this); });
}
void Mutex::ReaderUnlock() {
  MILLRACE_REAL(void(Mutex*), "5Mutex12ReaderUnlockEv");
  Unlocking(this, __tsan_mutex_read_lock, [this] { real(this); });
}
bool Mutex::ReaderTryLock() {
  MILLRACE_REAL(bool(Mutex*), "5Mutex13ReaderTryLockEv");
  return TryingToLock(this, __tsan_mutex_read_lock, [this] { return real(this); });
}
void Mutex::LockWhen(const Condition& condition) {
  MILLRACE_REAL(void(Mutex*, const Condition&), "5Mutex8LockWhenERKNS0_9ConditionE");
  Locking(this, 0, [&] { real(this, condition); });
}
// These two hold the lock at the end whether the condition is true or not.
bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  MILLRACE_REAL(bool(Mutex*, const Condition&, Duration),
                "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  bool met = false;
  Locking(this, 0, [&] { met = real(this, condition, timeout); });
  return met;
}
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  MILLRACE_REAL(bool(Mutex*, const Condition&, Time), "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  bool met = false;
  Locking(this, 0, [&] { met = real(this, condition, deadline); });
  return met;
}
void Mutex::Await(const Condition& condition) {
  MILLRACE_REAL(void(Mutex*, const Condition&), "5Mutex5AwaitERKNS0_9ConditionE");
  Waiting(this, [&] { real(this, condition); });
}
bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  MILLRACE_REAL(bool(Mutex*, const Condition&, Duration), "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  return Waiting(this, [&] { return real(this, condition, timeout); });
}
bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  MILLRACE_REAL(bool(Mutex*, const Condition&, Time), "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return Waiting(this, [&] { return real(this, condition, deadline); });
}

void CondVar::Wait(Mutex* mutex) {
  MILLRACE_REAL(void(CondVar*, Mutex*), "7CondVar4WaitEPNS0_5MutexE");
  Waiting(mutex, [&] { real(this, mutex); });
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  MILLRACE_REAL(bool(CondVar*, Mutex*, Duration), "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  return Waiting(mutex, [&] { return real(this, mutex, timeout); });
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  MILLRACE_REAL(bool(CondVar*, Mutex*, Time), "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  return Waiting(mutex, [&] { return real(this, mutex, deadline); });
}

void Notification::Notify() {
  MutexLock lock(&mutex_);
  notified_yet_.store(true, std::memory_order_release);
}
void Notification::WaitForNotification() const {
  if (HasBeenNotified()) return;
  mutex_.LockWhen(Condition(&HasBeenNotifiedInternal, &notified_yet_));
  mutex_.Unlock();
}
bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  if (HasBeenNotified()) return true;
  const bool notified = mutex_.LockWhenWithTimeout(Condition(&HasBeenNotifiedInternal, &notified_yet_), timeout);
  mutex_.Unlock();
  return notified;
}
bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  if (HasBeenNotified()) return true;
  const bool notified = mutex_.LockWhenWithDeadline(Condition(&HasBeenNotifiedInternal, &notified_yet_), deadline);
  mutex_.Unlock();
  return notified;
}

void Status::UnrefNonInlined(uintptr_t rep) {
  status_internal::StatusRep* const counted = RepToPointer(rep);
  if (counted->ref.fetch_sub(1, std::memory_order_acq_rel) == 1) delete counted;
}

ABSL_NAMESPACE_END
}  // namespace absl

// Each race is looked up among the addresses of all before it: those that are overlooked are so many that tests would
// take minutes. What is overlooked is known by the frames of both accesses: keep them for long.
extern "C" const char* __tsan_default_options() { return "suppress_equal_addresses=0 history_size=4"; }
