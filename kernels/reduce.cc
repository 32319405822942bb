#include "kernels/reduce.h"

#include <immintrin.h>

#include <cmath>
#include <limits>

#include "kernels/compute.h"

namespace millrace::kernels {
namespace {

// Two registers are the 16 lanes. The end of the data is loaded with a mask, so that missing elements are zeros.
struct Lanes {
  __m256 low, high;
};

__m256i TailMask(int64_t left) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left > 8 ? 8 : left < 0 ? 0 : left)), index);
}

float Fold(const Lanes& lanes) {
  const __m256 eight = _mm256_add_ps(lanes.low, lanes.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

float FoldMax(const Lanes& lanes) {
  const __m256 eight = _mm256_max_ps(lanes.low, lanes.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Calls step(lanes_of_x, lane register, present) over x; `present` has all bits set where there is an element.
template <typename Step>
Lanes OverLanes(int64_t n, float start, const Step& step) {
  Lanes lanes = {_mm256_set1_ps(start), _mm256_set1_ps(start)};
  const __m256i all = _mm256_set1_epi32(-1);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    lanes.low = step(i, all, lanes.low);
    lanes.high = step(i + 8, all, lanes.high);
  }
  if (i < n) {
    lanes.low = step(i, TailMask(n - i), lanes.low);
    if (n - i > 8) lanes.high = step(i + 8, TailMask(n - i - 8), lanes.high);
  }
  return lanes;
}

// A lane without an element keeps its value, so that even the sign of a zero stays.
__m256 Keep(__m256i present, __m256 old_value, __m256 new_value) {
  return _mm256_blendv_ps(old_value, new_value, _mm256_castsi256_ps(present));
}

struct WideLanes {
  __m256d lanes[4];
};

template <typename Step>
double OverWideLanes(const float* x, int64_t n, const Step& step) {
  __m256d lanes[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 4; ++j) lanes[j] = step(_mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * j)), lanes[j]);
  }
  alignas(32) double stored[16];
  for (int j = 0; j < 4; ++j) _mm256_store_pd(stored + 4 * j, lanes[j]);
  for (int64_t lane = 0; i + lane < n; ++lane) {
    const __m256d value = _mm256_set1_pd(static_cast<double>(x[i + lane]));
    stored[lane] = _mm256_cvtsd_f64(step(value, _mm256_set1_pd(stored[lane])));
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) stored[lane] += stored[lane + width];
  }
  return stored[0];
}

}  // namespace

float Sum(const float* x, int64_t n) {
  const FlushDenormals flush;
  return Fold(OverLanes(n, 0.0f, [x](int64_t i, __m256i present, __m256 lane) {
    return Keep(present, lane, _mm256_add_ps(lane, _mm256_maskload_ps(x + i, present)));
  }));
}

float Dot(const float* x, const float* y, int64_t n) {
  const FlushDenormals flush;
  return Fold(OverLanes(n, 0.0f, [x, y](int64_t i, __m256i present, __m256 lane) {
    return Keep(present, lane,
                _mm256_fmadd_ps(_mm256_maskload_ps(x + i, present), _mm256_maskload_ps(y + i, present), lane));
  }));
}

float SumSquares(const float* x, int64_t n) { return Dot(x, x, n); }

float SumSquaresAround(const float* x, float center, int64_t n) {
  const FlushDenormals flush;
  const __m256 centers = _mm256_set1_ps(center);
  return Fold(OverLanes(n, 0.0f, [x, centers](int64_t i, __m256i present, __m256 lane) {
    const __m256 distance = _mm256_sub_ps(_mm256_maskload_ps(x + i, present), centers);
    return Keep(present, lane, _mm256_fmadd_ps(distance, distance, lane));
  }));
}

float Max(const float* x, int64_t n) {
  const FlushDenormals flush;
  return FoldMax(OverLanes(n, -std::numeric_limits<float>::infinity(), [x](int64_t i, __m256i present, __m256 lane) {
    return Keep(present, lane, _mm256_max_ps(lane, _mm256_maskload_ps(x + i, present)));
  }));
}

float MaxMagnitude(const float* x, int64_t n) {
  const FlushDenormals flush;
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return FoldMax(OverLanes(n, 0.0f, [x, magnitude](int64_t i, __m256i present, __m256 lane) {
    return Keep(present, lane, _mm256_max_ps(lane, _mm256_and_ps(_mm256_maskload_ps(x + i, present), magnitude)));
  }));
}

double SumInF64(const float* x, int64_t n) {
  const FlushDenormals flush;
  return OverWideLanes(x, n, [](__m256d value, __m256d lane) { return _mm256_add_pd(lane, value); });
}

double SumSquaresInF64(const float* x, int64_t n) {
  const FlushDenormals flush;
  return OverWideLanes(x, n, [](__m256d value, __m256d lane) { return _mm256_fmadd_pd(value, value, lane); });
}

}  // namespace millrace::kernels
