#include "model/arena.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/machine.h"

namespace millrace::model {
namespace {

constexpr int64_t kAlignment = 16;  // floats
constexpr size_t kHugePage = 2 << 20;

absl::Status OutOfMemory(uint64_t bytes, uint64_t available) {
  return absl::ResourceExhaustedError(
      absl::StrCat("out of memory: ", bytes >> 20, " MiB are needed and ", available >> 20, " MiB are free"));
}

}  // namespace

void internal::Unmap::operator()(float* memory) const { munmap(memory, bytes); }

absl::StatusOr<Arena> Arena::Create(int64_t floats) {
  Arena arena;
  if (floats == 0) return arena;
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  // Asked first: the kernel promises memory that it has not, and kills who uses it.
  const uint64_t available = bytes >= kHugePage ? AvailableMemory() : bytes;
  if (bytes > available) return OutOfMemory(bytes, available);
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return OutOfMemory(bytes, available);
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
  arena.size_ = floats;
  arena.memory_ = {static_cast<float*>(memory), internal::Unmap{bytes}};
  return arena;
}

float* Arena::Take(int64_t floats) {
  const int64_t begin = taken_;
  taken_ += (floats + kAlignment - 1) / kAlignment * kAlignment;
  if (memory_ == nullptr) return nullptr;
  if (taken_ > size_) {
    std::fprintf(stderr, "an arena of %ld floats was asked for %ld\n", static_cast<long>(size_),
                 static_cast<long>(taken_));
    std::abort();
  }
  return memory_.get() + begin;
}

}  // namespace millrace::model
