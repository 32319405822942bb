// 6 x 16: 12 accumulators, 2 registers of B, 2 of A.
#include <immintrin.h>

#include "kernels/tile_body.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 6;

struct Avx2 {
  using Register = __m256;
  using Unit = float;
  static constexpr int kLanes = 8;

  static __m256 Zero() { return _mm256_setzero_ps(); }
  static __m256 Load(const float* c) { return _mm256_loadu_ps(c); }
  static void Store(float* c, __m256 value) { _mm256_storeu_ps(c, value); }
  static __m256 LoadB(const float* b) { return _mm256_loadu_ps(b); }
  static __m256 Broadcast(const float* a) { return _mm256_broadcast_ss(a); }
  static __m256 MultiplyAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
};

constexpr auto kFunctions = TileFunctions<Avx2, kRows>();

}  // namespace

const Tile kAvx2Tile = {kRows, 2 * Avx2::kLanes, 4, 1 << 17, kFunctions.data()};

}  // namespace millrace::kernels
