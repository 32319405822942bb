#include "model/arena.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace millrace::model {
namespace {

constexpr int64_t kAlignment = 16;  // floats
constexpr size_t kHugePage = 2 << 20;

}  // namespace

void internal::Unmap::operator()(float* memory) const { munmap(memory, bytes); }

Arena::Arena(int64_t floats) : size_(floats) {
  if (floats == 0) return;
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "out of memory: %zu bytes for a model's arena\n", bytes);
    std::abort();
  }
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
  memory_ = {static_cast<float*>(memory), internal::Unmap{bytes}};
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
