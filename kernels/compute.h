// Says what a computation may use: instruction sets and threads. None of it changes a result.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::kernels {

// Each includes the ones before. The baseline of the whole build is kAvx2 (x86-64-v3); kScalar runs the definitions.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// The best that this processor has and that computes as defined: AVX-512's bf16 instruction is compared with its
// definition first, edge values included.
Isa DetectIsa();
// "scalar", "avx2", "avx512", "avx512_bf16".
absl::string_view IsaName(Isa isa);
absl::StatusOr<Isa> ParseIsa(absl::string_view name);

// Flushes denormal results to zero and takes denormal operands for zero, on this thread, while it lives. All
// computations whose bits matter run so.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  const unsigned int before_;
};

// An instruction set and a pool of threads. Used by one thread at a time.
class Compute {
 public:
  // `threads` in all, the calling one included; at least 1. Requires a processor that has `isa`.
  Compute(Isa isa, int threads);
  ~Compute();
  Compute(const Compute&) = delete;
  Compute& operator=(const Compute&) = delete;

  Isa isa() const { return isa_; }
  int threads() const { return threads_; }
  // Of the calling thread, below its pool's threads(); 0 for threads of no pool.
  static int ThreadIndex();

  // Calls `part` for ranges [begin, end) that together are [0, n), on all threads, and returns when all are done.
  // Denormals are flushed within. Which thread gets which range is not defined; ranges are at least `grain` long, but
  // for the last.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> part) const;

 private:
  struct Pool;
  const Isa isa_;
  const int threads_;
  const std::unique_ptr<Pool> pool_;  // null for one thread
};

}  // namespace millrace::kernels
