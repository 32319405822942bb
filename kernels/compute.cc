#include "kernels/compute.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/bfloat16.h"
#include "kernels/busy_wait.h"
#include "kernels/pack.h"
#include "kernels/tile.h"

namespace millrace::kernels {
namespace {

constexpr unsigned int kFlush = 0x8040;  // FTZ and DAZ of MXCSR
// An idle helper sleeps after so long, some 0.2 ms: work mostly comes in quick succession.
constexpr uint64_t kWatchfulCycles = 600'000;
constexpr int kChunks = 16;

thread_local int thread_index = 0;

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

// One piece of work at a time, cut into chunks. Each thread has its part of them, the same part of each piece, so that
// it finds in its cache what it wrote there in the piece before; then it takes what others have left. A helper that
// comes too late finds no chunk and is not waited for.
struct Compute::Pool {
  explicit Pool(int threads) : shares(static_cast<size_t>(threads)) {
    for (int i = 1; i < threads; ++i) helpers.emplace_back([this, i] { Help(i); });
  }
  ~Pool() {
    {
      absl::MutexLock lock(&mutex);
      ending.store(true);
      changed.SignalAll();
    }
    for (std::thread& helper : helpers) helper.join();
  }

  void Run(int64_t size, int64_t chunk_size, absl::FunctionRef<void(int64_t, int64_t)> task) {
    const int64_t chunks = DivideUp(size, chunk_size);
    const auto threads = static_cast<int64_t>(shares.size());
    part = &task;
    n = size;
    chunk = chunk_size;
    done.store(0, std::memory_order_relaxed);
    for (int64_t i = 0; i < threads; ++i) {
      Share& share = shares[static_cast<size_t>(i)];
      share.first = i * chunks / threads;
      share.begun.store(false, std::memory_order_relaxed);
      share.left.store((i + 1) * chunks / threads - share.first, std::memory_order_release);
    }
    round.fetch_add(1);
    if (sleepers.load() > 0) {
      KeepHelpersOffThisCore();
      absl::MutexLock lock(&mutex);
      changed.SignalAll();
    }
    TakeChunks();
    BusyWait([&] { return done.load(std::memory_order_acquire) >= chunks; });
  }

  // A thread that wakes up begins where it last ran if its kernel saw all cores busy lately. Were that behind the caller,
  // who does not rest, it would wait there for milliseconds.
  void KeepHelpersOffThisCore() {
    const int core = sched_getcpu();
    if (core == kept_off) return;
    kept_off = core;
    cpu_set_t others;
    if (sched_getaffinity(0, sizeof(others), &others) != 0) return;  // more cores than the set has room for
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0) return;
    for (std::thread& helper : helpers) pthread_setaffinity_np(helper.native_handle(), sizeof(others), &others);
  }

  void TakeChunks() {
    const FlushDenormals flush;
    const auto own = static_cast<size_t>(thread_index);
    int64_t taken = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(own + i) % shares.size()];
      // Whoever holds a chunk keeps the round from ending, and so what is written of it from changing.
      for (int64_t mine; (mine = share.left.load(std::memory_order_acquire)) > 0;) {
        // The last one is left to whom it belongs, who is about to be there: it is not worth its way to another core.
        if (i > 0 && mine == 1 && share.begun.load(std::memory_order_relaxed)) break;
        if (!share.left.compare_exchange_weak(mine, mine - 1, std::memory_order_acquire)) continue;
        if (i == 0) share.begun.store(true, std::memory_order_relaxed);
        const int64_t begin = (share.first + mine - 1) * chunk;
        (*part)(begin, std::min(n, begin + chunk));
        ++taken;
      }
    }
    if (taken > 0) done.fetch_add(taken, std::memory_order_release);
  }

  void Help(int index) {
    thread_index = index;
    while (!ending.load(std::memory_order_relaxed)) {
      const uint64_t seen = round.load();
      TakeChunks();
      const uint64_t idle_since = __rdtsc();
      while (round.load(std::memory_order_relaxed) == seen && __rdtsc() - idle_since < kWatchfulCycles) _mm_pause();
      if (round.load() != seen) continue;
      absl::MutexLock lock(&mutex);
      // Announced before the last look: either this sees the new round or Run sees the sleeper.
      sleepers.fetch_add(1);
      while (round.load() == seen && !ending.load()) changed.Wait(&mutex);
      sleepers.fetch_sub(1);
    }
  }

  // A thread's chunks: the first of them, whether the thread has begun, and how many nobody has taken, which are taken
  // from the last one down.
  struct alignas(64) Share {
    int64_t first = 0;
    std::atomic<bool> begun = false;
    std::atomic<int64_t> left = 0;
  };

  std::vector<std::thread> helpers;
  int kept_off = -1;  // the core that helpers keep off
  absl::Mutex mutex;
  absl::CondVar changed ABSL_GUARDED_BY(mutex);
  std::atomic<bool> ending = false;  // set under the mutex
  std::atomic<int> sleepers = 0;     // changed under the mutex
  // Of the present round: written before the shares, from which chunks are taken.
  absl::FunctionRef<void(int64_t, int64_t)>* part = nullptr;
  int64_t n = 0;
  int64_t chunk = 0;
  std::vector<Share> shares;  // by thread
  alignas(64) std::atomic<uint64_t> round = 0;
  alignas(64) std::atomic<int64_t> done = 0;
};

Compute::Compute(Isa isa, int threads)
    : isa_(isa), threads_(std::max(1, threads)), pool_(threads > 1 ? std::make_unique<Pool>(threads) : nullptr) {}

Compute::~Compute() = default;

int Compute::ThreadIndex() { return thread_index; }

void Compute::ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> part) const {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (pool_ == nullptr || n <= grain) {
    const FlushDenormals flush;
    part(0, n);
    return;
  }
  // Many chunks a thread, so that a slow one does not keep the others waiting, nor the last one.
  pool_->Run(n, std::max(grain, DivideUp(n, kChunks * threads_)), part);
}

}  // namespace millrace::kernels
