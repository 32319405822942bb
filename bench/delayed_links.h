// Links between network interfaces whose frames take their time on the way.
#pragma once

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace millrace::bench {

// Each end of a link is a TAP device, which may be given to a network namespace. Not thread-safe.
class DelayedLinks {
 public:
  explicit DelayedLinks(absl::Duration delay) : delay_(delay) {}
  // The devices are gone then.
  ~DelayedLinks();
  DelayedLinks(const DelayedLinks&) = delete;
  DelayedLinks& operator=(const DelayedLinks&) = delete;

  // Makes the two ends of a link, in this process' namespace. UNAVAILABLE if this machine lets nobody, or not us.
  absl::Status Add(const std::string& one_end, const std::string& other_end);
  // From now on frames arrive, `delay` after they were sent. No more links.
  absl::Status Start();

 private:
  struct Frame {
    absl::Time due;
    int to = -1;
    std::string bytes;
  };

  void Carry();

  const absl::Duration delay_;
  std::vector<int> ends_;  // of link i: 2 i and 2 i + 1
  int stop_ = -1;          // an event
  std::thread carrying_;
  std::deque<Frame> on_the_way_;  // the thread's
};

}  // namespace millrace::bench
