// Holds memory that a thread needs again and again.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace millrace::kernels {

// Grows to what it was asked for most and stays; for thread_local variables.
class Scratch {
 public:
  // `floats` aligned to 64 bytes, whatever they hold; good until the next call.
  float* Get(int64_t floats) {
    if (floats > size_) {
      size_t bytes = static_cast<size_t>(floats) * sizeof(float);
      // Small pages may fall on each other in the outer cache, as chance will have it.
      const bool huge = bytes >= kWorthHuge;
      const auto alignment = std::align_val_t(huge ? kHugePage : 64);
      if (huge) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
      memory_.reset();
      memory_ = {static_cast<float*>(::operator new(bytes, alignment)), Free{alignment}};
      if (huge) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
      size_ = static_cast<int64_t>(bytes / sizeof(float));
    }
    return memory_.get();
  }

 private:
  static constexpr size_t kHugePage = 2 << 20, kWorthHuge = 128 << 10;
  struct Free {
    std::align_val_t alignment;
    void operator()(float* memory) const { ::operator delete(memory, alignment); }
  };
  std::unique_ptr<float, Free> memory_{nullptr, Free{}};
  int64_t size_ = 0;
};

}  // namespace millrace::kernels
