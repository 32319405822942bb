// 14 x 32 over pairs, by VDPBF16PS: for each pair the odd element's multiply-add first, then the even one's, denormals
// flushed, rounded to nearest even.
//
// Compiled for AVX-512 with bf16; see tile_avx512.cc.
#include <immintrin.h>

#include "kernels/fetch_ahead.h"
#include "kernels/pack_avx512_bf16.h"
#include "kernels/tile_body.h"

namespace millrace::kernels {
namespace {

constexpr int kRows = 14;

__m512bh AsPairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

struct Pairs {
  using Register = __m512;
  using Unit = int;
  static constexpr int kLanes = 16;

  static __m512 Zero() { return _mm512_setzero_ps(); }
  static __m512 Load(const float* c) { return _mm512_loadu_ps(c); }
  static void Store(float* c, __m512 value) { _mm512_storeu_ps(c, value); }
  static __m512bh LoadB(const int* b) { return AsPairs(_mm512_load_si512(b)); }
  static __m512bh Broadcast(const int* a) { return AsPairs(_mm512_set1_epi32(*a)); }
  static __m512 MultiplyAdd(__m512bh a, __m512bh b, __m512 c) { return _mm512_dpbf16_ps(c, a, b); }
};

constexpr auto kFunctions = TileFunctions<Pairs, kRows>();

// Some rows of B at a time, from one end to the other, so that memory is read in its order. kOne: a single row of A, as
// of generation, whose loop would take longer than what is in it.
template <int kTogether, bool kOne>
void AddRowsOfB(const FewRowsWork& work, int64_t p, bool odd) {
  const int* const a = static_cast<const int*>(work.a) + p / 2;
  const float* const b = work.b + p * work.b_stride;
  const int64_t rows = kOne ? 1 : work.rows;
  for (int64_t j = 0; j < work.columns; j += Pairs::kLanes) {
    const __mmask16 there = First(work.columns - j);
    __m512bh pairs[kTogether];
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) {
      const float* const row = b + 2 * i * work.b_stride + j;
      _mm_prefetch(row + kRowsAhead * work.b_stride, _MM_HINT_T1);
      _mm_prefetch(row + (kRowsAhead + 1) * work.b_stride, _MM_HINT_T1);
      const __m512 second = odd ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there, row + work.b_stride);
      pairs[i] = AsPairs(ConvertRows(_mm512_maskz_loadu_ps(there, row), second));
    }
    for (int64_t row = 0; row < rows; ++row) {
      float* const c = work.c + row * work.c_stride + j;
      __m512 chain = _mm512_maskz_loadu_ps(there, c);
#pragma GCC unroll 8
      for (int i = 0; i < kTogether; ++i) {
        chain = _mm512_dpbf16_ps(chain, Pairs::Broadcast(a + row * work.a_stride + i), pairs[i]);
      }
      _mm512_mask_storeu_ps(c, there, chain);
    }
  }
}

template <bool kOne>
void MultiplyRows(const FewRowsWork& work) {
  constexpr int kTogether = 8;
  int64_t p = 0;
  for (; p + 2 * kTogether <= work.k; p += 2 * kTogether) AddRowsOfB<kTogether, kOne>(work, p, false);
  for (; p < work.k; p += 2) AddRowsOfB<1, kOne>(work, p, p + 1 == work.k);
}

void MultiplyFewRows(const FewRowsWork& work) {
  if (work.rows == 1) {
    MultiplyRows<true>(work);
  } else {
    MultiplyRows<false>(work);
  }
}

float Widen(unsigned bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// As defined, with denormals flushed by the processor.
float PairAsDefined(float c, unsigned a, unsigned b) {
  c = __builtin_fmaf(Widen(a & 0xFFFF0000u), Widen(b & 0xFFFF0000u), c);
  return __builtin_fmaf(Widen(a << 16), Widen(b << 16), c);
}

bool IsNan(unsigned bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

// A pattern of 16 bits: every eighth one is an edge.
unsigned Pattern(unsigned long long* state) {
  static constexpr unsigned short kEdges[] = {0x0000, 0x8000, 0x0001, 0x007F, 0x0080, 0x8080, 0x7F7F, 0xFF7F,
                                              0x7F80, 0xFF80, 0x3F80, 0xBF80, 0x3F81, 0x0100, 0x4000, 0x2000};
  *state = *state * 6364136223846793005ull + 1442695040888963407ull;
  const auto random = static_cast<unsigned>(*state >> 40);
  if (random % 8 == 0) return kEdges[random / 8 % 16];
  // Exponents near each other in most cases, so that roundings and cancellations happen.
  if (random % 8 < 6) return (random >> 4 & 0x807Fu) | (120u + (random >> 12) % 16) << 7;
  return random >> 4 & 0xFFFFu;
}

}  // namespace

const Tile kAvx512Bf16Tile = {kRows, 2 * Pairs::kLanes, 0, 0, kFunctions.data(), &MultiplyFewRows};

bool Bf16InstructionIsAsDefined() {
  const FlushDenormals flush;
  unsigned long long state = 20261124;
  alignas(64) unsigned a[16], b[16], c[16], instruction[16];
  for (int round = 0; round < 4096; ++round) {
    for (int i = 0; i < 16; ++i) {
      a[i] = Pattern(&state) | Pattern(&state) << 16;
      b[i] = Pattern(&state) | Pattern(&state) << 16;
      c[i] = Pattern(&state) << 16 | Pattern(&state);
    }
    const __m512 result = _mm512_dpbf16_ps(_mm512_castsi512_ps(_mm512_load_si512(c)), AsPairs(_mm512_load_si512(a)),
                                           AsPairs(_mm512_load_si512(b)));
    _mm512_store_si512(instruction, _mm512_castps_si512(result));
    for (int i = 0; i < 16; ++i) {
      const float defined = PairAsDefined(Widen(c[i]), a[i], b[i]);
      unsigned bits;
      __builtin_memcpy(&bits, &defined, sizeof(bits));
      // A computation that meets a NaN fails anyway; which NaN it is does not matter.
      if (bits != instruction[i] && !(IsNan(bits) && IsNan(instruction[i]))) return false;
    }
  }
  return true;
}

}  // namespace millrace::kernels
