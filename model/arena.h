// Gives out memory for a pass through a model, sized once per configuration: a step allocates nothing.
//
//   Arena measure;                     // gives out null and counts
//   Layout(&measure);
//   MILLRACE_ASSIGN_OR_RETURN(Arena arena, Arena::Create(measure.taken()));
//   Layout(&arena);                    // the same requests again
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

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
  // Holds `floats`, all zero; large ones on huge pages where the system has them. RESOURCE_EXHAUSTED if the machine or
  // the container has not so much memory left.
  static absl::StatusOr<Arena> Create(int64_t floats);
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
