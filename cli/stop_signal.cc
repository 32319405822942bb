#include "cli/stop_signal.h"

#include <unistd.h>

#include <utility>

namespace millrace::cli {

StopSignal::StopSignal() {
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  thread_ = std::thread([this] { Listen(); });
}

StopSignal::~StopSignal() {
  ending_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

void StopSignal::Tell(std::function<void()> told) {
  absl::MutexLock lock(&mutex_);
  told_ = std::move(told);
  if (told_ && asked_.HasBeenNotified()) told_();
}

void StopSignal::Listen() {
  for (int number = 0;;) {
    sigwait(&signals_, &number);
    if (ending_) return;
    if (asked_.HasBeenNotified()) _exit(128 + number);
    absl::MutexLock lock(&mutex_);
    asked_.Notify();
    if (told_) told_();
  }
}

}  // namespace millrace::cli
