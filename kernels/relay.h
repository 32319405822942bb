// Adds up over rows, in their order, on several threads: each adds those rows that are its own in ParallelFor too, to
// sums that another has begun. Cut the other way, each thread would read rows of all others; where cores share no
// cache, that takes its time, and so does writing to such rows again.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/busy_wait.h"
#include "kernels/compute.h"

namespace millrace::kernels {

class Relay {
 public:
  // Legs have `least` rows or more, unless there is only one.
  Relay(const Compute& compute, int64_t rows, int64_t least);

  // The rows are cut into so many legs, one after the other.
  int64_t legs() const { return legs_; }
  // The sums are to be cut into so many lanes, so that there is a thread for each leg of each lane.
  int64_t lanes() const { return lanes_; }

  class Leg {
   public:
    int64_t index() const { return index_; }
    int64_t lane() const { return lane_; }
    int64_t begin() const { return begin_; }  // of its rows
    int64_t end() const { return end_; }
    // Waits until the leg before has passed on more than `sums` sums.
    void Await(int64_t sums) {
      if (before_ == nullptr || seen_ > sums) return;
      BusyWait([&] { return (seen_ = before_->load(std::memory_order_acquire)) > sums; });
    }
    // Passes on sums up to the first `sums`. All legs of a lane have the same ones in the same order.
    void Pass(int64_t sums) { after_->store(sums, std::memory_order_release); }

   private:
    friend class Relay;
    int64_t index_ = 0, lane_ = 0, begin_ = 0, end_ = 0;
    const std::atomic<int64_t>* before_ = nullptr;  // null for the first one
    std::atomic<int64_t>* after_ = nullptr;
    int64_t seen_ = 0;  // passed on by it
  };

  // Calls `run` once for each leg of each lane, on all threads. The order in which legs begin is not defined.
  void Run(absl::FunctionRef<void(Leg& leg)> run) const;

 private:
  const Compute& compute_;
  const int64_t rows_;
  const int64_t legs_;
  const int64_t lanes_;
};

}  // namespace millrace::kernels
