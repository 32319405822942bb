#include "kernels/relay.h"

#include <algorithm>

#include "absl/container/fixed_array.h"

namespace millrace::kernels {
namespace {

struct alignas(64) Baton {
  std::atomic<bool> taken = false;
  std::atomic<int64_t> passed = 0;
};

}  // namespace

Relay::Relay(const Compute& compute, int64_t rows, int64_t least)
    : compute_(compute),
      rows_(rows),
      legs_(std::clamp<int64_t>(rows / least, 1, compute.threads())),
      lanes_(compute.threads() / legs_) {}

void Relay::Run(absl::FunctionRef<void(Leg& leg)> run) const {
  const int64_t count = legs_ * lanes_;
  absl::FixedArray<Baton, 4> batons(static_cast<size_t>(count));
  // Even, for those who take rows in pairs.
  const auto cut = [this](int64_t leg) { return leg == legs_ ? rows_ : leg * rows_ / legs_ / 2 * 2; };
  compute_.ParallelFor(count, 1, [&](int64_t, int64_t) {
    // From the thread's own one on. A leg waits for the one before it, which somebody has taken or will take: the
    // thread with index 0 takes them in their order.
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (Compute::ThreadIndex() + i) % count;
      Baton& baton = batons[static_cast<size_t>(at)];
      if (baton.taken.exchange(true)) continue;
      Leg leg;
      leg.index_ = at / lanes_;
      leg.lane_ = at % lanes_;
      leg.begin_ = cut(leg.index_);
      leg.end_ = cut(leg.index_ + 1);
      leg.before_ = leg.index_ == 0 ? nullptr : &batons[static_cast<size_t>(at - lanes_)].passed;
      leg.after_ = &baton.passed;
      run(leg);
    }
  });
}

}  // namespace millrace::kernels
