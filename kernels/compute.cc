#include "kernels/compute.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/bfloat16.h"
#include "kernels/pack.h"
#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr unsigned int kFlush = 0x8040;  // FTZ and DAZ of MXCSR
// Looks this often before it sleeps: work mostly comes in quick succession.
constexpr int kLooks = 2000;
constexpr int kChunks = 16;

}  // namespace

Isa DetectIsa() {
  static const Isa detected = [] {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
      return Isa::kAvx2;
    }
    if (!__builtin_cpu_supports("avx512bf16") || !Bf16InstructionIsAsDefined() ||
        !Bf16ConversionIsAsDefined(static_cast<uint16_t (*)(float)>(&RoundToBf16))) {
      return Isa::kAvx512;
    }
    return Isa::kAvx512Bf16;
  }();
  return detected;
}

absl::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

absl::StatusOr<Isa> ParseIsa(absl::string_view name) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (name == IsaName(isa)) return isa;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no instruction set '", name, "'; known are scalar, avx2, avx512 and avx512_bf16"));
}

FlushDenormals::FlushDenormals() : before_(_mm_getcsr()) {
  if ((before_ & kFlush) != kFlush) _mm_setcsr(before_ | kFlush);
}

FlushDenormals::~FlushDenormals() {
  if ((before_ & kFlush) != kFlush) _mm_setcsr(before_);
}

// One piece of work at a time, cut into chunks that threads take in turn.
struct Compute::Pool {
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) helpers.emplace_back([this] { Help(); });
  }
  ~Pool() {
    {
      absl::MutexLock lock(&mutex);
      ending = true;
      round.fetch_add(1);
      changed.SignalAll();
    }
    for (std::thread& helper : helpers) helper.join();
  }

  void Run(int64_t size, int64_t chunk_size, absl::FunctionRef<void(int64_t, int64_t)> task) {
    part = &task;
    n = size;
    chunk = chunk_size;
    next.store(0);
    busy.store(static_cast<int>(helpers.size()));
    {
      absl::MutexLock lock(&mutex);
      round.fetch_add(1);
      changed.SignalAll();
    }
    TakeChunks();
    for (int looks = 0; busy.load(std::memory_order_acquire) > 0; ++looks) {
      if (looks < kLooks) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void TakeChunks() {
    const FlushDenormals flush;
    for (;;) {
      const int64_t begin = next.fetch_add(chunk);
      if (begin >= n) return;
      (*part)(begin, std::min(n, begin + chunk));
    }
  }

  void Help() {
    for (uint64_t seen = 0;;) {
      for (int looks = 0; looks < kLooks && round.load(std::memory_order_acquire) == seen; ++looks) _mm_pause();
      {
        absl::MutexLock lock(&mutex);
        while (round.load() == seen) changed.Wait(&mutex);
        if (ending) return;
        seen = round.load();
      }
      TakeChunks();
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> helpers;
  absl::Mutex mutex;
  absl::CondVar changed ABSL_GUARDED_BY(mutex);
  bool ending ABSL_GUARDED_BY(mutex) = false;
  std::atomic<uint64_t> round = 0;  // changed under the mutex
  // Of the present round: written before it is announced.
  absl::FunctionRef<void(int64_t, int64_t)>* part = nullptr;
  int64_t n = 0;
  int64_t chunk = 0;
  std::atomic<int64_t> next = 0;
  std::atomic<int> busy = 0;
};

Compute::Compute(Isa isa, int threads)
    : isa_(isa), threads_(std::max(1, threads)), pool_(threads > 1 ? std::make_unique<Pool>(threads) : nullptr) {}

Compute::~Compute() = default;

void Compute::ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> part) const {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (pool_ == nullptr || n <= grain) {
    const FlushDenormals flush;
    part(0, n);
    return;
  }
  // Many chunks a thread, so that a slow one does not keep the others waiting, nor the last one.
  pool_->Run(n, std::max(grain, (n + kChunks * threads_ - 1) / (kChunks * threads_)), part);
}

}  // namespace millrace::kernels
