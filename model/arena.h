// Gives out memory for a pass through a model, sized once per configuration: a step allocates nothing.
//
//   Arena measure;                     // gives out null and counts
//   Layout(&measure);
//   Arena arena(measure.taken());
//   Layout(&arena);                    // the same requests again
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace millrace::model {

namespace internal {

struct Unmap {
  size_t bytes = 0;
  void operator()(float* memory) const;
};

}  // namespace internal

// One thread at a time.
class Arena {
 public:
  Arena() = default;
  // Holds `floats`, all zero; large ones on huge pages where the system has them.
  explicit Arena(int64_t floats);
  Arena(Arena&&) noexcept = default;
  Arena& operator=(Arena&&) noexcept = default;

  // `floats` aligned to 64 bytes, whatever they hold; null while measuring. Requires that they were reserved.
  float* Take(int64_t floats);
  int64_t taken() const { return taken_; }

 private:
  std::unique_ptr<float, internal::Unmap> memory_;
  int64_t size_ = 0;
  int64_t taken_ = 0;
};

}  // namespace millrace::model
