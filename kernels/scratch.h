// Holds memory that a thread needs again and again.
#pragma once

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
      memory_.reset(static_cast<float*>(
          ::operator new(static_cast<size_t>(floats) * sizeof(float), std::align_val_t(kAlignment))));
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace millrace::kernels
