// 14 x 32: 28 accumulators, 2 registers of B, 2 of A.
//
// Compiled for AVX-512; nothing from headers that other files share may be instantiated here, lest the linker keep this
// file's copy for processors without.
#include <immintrin.h>

#include "kernels/tile_body.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 14;

struct Avx512 {
  using Register = __m512;
  using Unit = float;
  static constexpr int kLanes = 16;

  static __m512 Zero() { return _mm512_setzero_ps(); }
  static __m512 Load(const float* c) { return _mm512_loadu_ps(c); }
  static void Store(float* c, __m512 value) { _mm512_storeu_ps(c, value); }
  static __m512 LoadB(const float* b) { return _mm512_loadu_ps(b); }
  static __m512 Broadcast(const float* a) { return _mm512_set1_ps(*a); }
  static __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
};

constexpr auto kFunctions = TileFunctions<Avx512, kRows>();

}  // namespace

const Tile kAvx512Tile = {kRows, 2 * Avx512::kLanes, 1 << 20, 1 << 20, kFunctions.data()};

}  // namespace millrace::kernels
