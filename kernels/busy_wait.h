// Waiting for another thread that is about to be done.
#pragma once

#include <immintrin.h>

#include <thread>

namespace millrace::kernels {

// Looks until `come` says so; after many looks the core is given away each time, as the other thread may have none.
template <typename Come>
void BusyWait(const Come& come) {
  constexpr int kLooks = 2000;
  for (int looks = 0; !come(); ++looks) {
    if (looks < kLooks) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace millrace::kernels
