#include "kernels/rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/fetch_ahead.h"
#include "kernels/functions.h"
#include "kernels/pack.h"
#include "kernels/reduce.h"
#include "kernels/relay.h"

namespace millrace::kernels {
namespace {

constexpr int64_t kGrainElements = 1 << 12;
constexpr int64_t kLeastOfLeg = 64;
constexpr int64_t kSumColumns = 32;

int64_t RowGrain(int64_t columns) { return columns >= kGrainElements ? 1 : kGrainElements / (columns + 1) + 1; }

// For sums over rows, which go down columns, a part of each row at a time.
void FetchAhead(const float* row, int64_t stride, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kCacheLine) __builtin_prefetch(row + kRowsAhead * stride + c, 0, 2);
}

// Adds up over rows: add(begin, end, column, columns) adds `columns` ones of those rows, from `column` on.
template <typename Add>
void SumRows(const Compute& compute, int64_t rows, int64_t columns, const Add& add) {
  if (rows * columns <= kGrainElements) {
    const FlushDenormals flush;
    add(0, rows, 0, columns);
    return;
  }
  const Relay relay(compute, rows, kLeastOfLeg);
  relay.Run([&](Relay::Leg& leg) {
    const int64_t pieces = DivideUp(columns, kSumColumns);
    const int64_t first = leg.lane() * pieces / relay.lanes(), past = (leg.lane() + 1) * pieces / relay.lanes();
    for (int64_t piece = first; piece < past; ++piece) {
      const int64_t column = piece * kSumColumns;
      leg.Await(piece - first);
      add(leg.begin(), leg.end(), column, std::min(kSumColumns, columns - column));
      leg.Pass(piece - first + 1);
    }
  });
}

// dgain += dy times the normalised x, over the rows; normed(row) says how an element of a row is normalised.
template <typename Normed>
void AddGainGradient(const Compute& compute, const float* x, const float* dy, int64_t rows, int64_t columns,
                     const Normed& normed, float* dgain) {
  SumRows(compute, rows, columns, [&](int64_t begin, int64_t end, int64_t column, int64_t count) {
    float* const to = dgain + column;
    for (int64_t r = begin; r < end; ++r) {
      const float* const in = x + r * columns + column;
      const float* const out = dy + r * columns + column;
      FetchAhead(in, columns, count);
      FetchAhead(out, columns, count);
      const auto of_row = normed(r);
      for (int64_t c = 0; c < count; ++c) to[c] = __builtin_fmaf(out[c], of_row(in[c]), to[c]);
    }
  });
}

// Not a number for infinity: where the squares of a row overflow, training has diverged, and zeros would hide it.
float InverseSqrt(float x) { return 1.0f / std::sqrt(x) + 0.0f * x; }

}  // namespace

void SoftmaxRows(float* x, int64_t rows, int64_t columns, float scale, bool causal, int64_t first_valid) {
  const FlushDenormals flush;
  for (int64_t r = 0; r < rows; ++r) {
    float* const row = x + r * columns;
    const int64_t valid = causal && first_valid + r < columns ? first_valid + r : columns;
    for (int64_t c = 0; c < valid; ++c) row[c] = scale * row[c];
    const float largest = Max(row, valid);
    for (int64_t c = 0; c < valid; ++c) row[c] = ExpOf(row[c] - largest);
    const float inverse = 1.0f / Sum(row, valid);
    for (int64_t c = 0; c < valid; ++c) row[c] = row[c] * inverse;
    for (int64_t c = valid; c < columns; ++c) row[c] = 0.0f;
  }
}

void SoftmaxRowsBackward(const float* y, float* dy, int64_t rows, int64_t columns, float scale) {
  const FlushDenormals flush;
  for (int64_t r = 0; r < rows; ++r) {
    const float* const out = y + r * columns;
    float* const row = dy + r * columns;
    const float dot = Dot(out, row, columns);
    for (int64_t c = 0; c < columns; ++c) row[c] = scale * (out[c] * (row[c] - dot));
  }
}

// With z = logits / temperature: d loss / dz = p - onehot; d entropy / dz = -p (log p + entropy).
void CrossEntropyRows(const Compute& compute, float* logits, int64_t rows, int64_t columns, const CrossEntropy& about) {
  const float inverse_temperature = 1.0f / about.temperature;
  const bool with_entropy = about.entropy != nullptr || about.d_entropy != nullptr;
  compute.ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    if (with_entropy) scratch.resize(std::max(scratch.size(), static_cast<size_t>(columns)));
    float* const shifted = scratch.data();
    for (int64_t r = begin; r < end; ++r) {
      float* const row = logits + r * columns;
      const uint32_t target = about.targets[r];
      if (about.temperature != 1.0f) {
        for (int64_t c = 0; c < columns; ++c) row[c] = row[c] * inverse_temperature;
      }
      const float largest = Max(row, columns);
      const float of_target = row[target] - largest;
      if (with_entropy) {
        for (int64_t c = 0; c < columns; ++c) shifted[c] = row[c] - largest;
      }
      for (int64_t c = 0; c < columns; ++c) row[c] = ExpOf(row[c] - largest);
      const float sum = Sum(row, columns);
      const float log_sum = LogOf(sum);
      // Where a logit is not a number, neither is the loss; Max and clamping would hide it.
      about.loss[r] = log_sum - of_target + 0.0f * (sum - sum);
      const float entropy = with_entropy ? log_sum - Dot(row, shifted, columns) / sum : 0.0f;
      if (about.entropy != nullptr) about.entropy[r] = entropy;
      if (about.d_loss == nullptr) continue;
      const float d_loss = about.d_loss[r] * inverse_temperature;
      const float factor = d_loss / sum;
      if (about.d_entropy == nullptr) {
        for (int64_t c = 0; c < columns; ++c) row[c] = row[c] * factor;
      } else {
        const float d_entropy = about.d_entropy[r] * inverse_temperature / sum;
        const float around = log_sum - entropy;
        for (int64_t c = 0; c < columns; ++c) row[c] = row[c] * (factor - d_entropy * (shifted[c] - around));
      }
      row[target] -= d_loss;
    }
  });
}

void LayerNormRows(const Compute& compute, const float* x, const float* gain, const float* bias, float epsilon,
                   int64_t rows, int64_t columns, float* y, float* mean, float* rstd) {
  compute.ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    const auto count = static_cast<float>(columns);
    for (int64_t r = begin; r < end; ++r) {
      const float* const in = x + r * columns;
      float* const out = y + r * columns;
      const float m = Sum(in, columns) / count;
      const float s = InverseSqrt(SumSquaresAround(in, m, columns) / count + epsilon);
      mean[r] = m;
      rstd[r] = s;
      if (bias != nullptr) {
        for (int64_t c = 0; c < columns; ++c) out[c] = __builtin_fmaf((in[c] - m) * s, gain[c], bias[c]);
      } else {
        for (int64_t c = 0; c < columns; ++c) out[c] = (in[c] - m) * s * gain[c];
      }
    }
  });
}

// With h = (x - mean) rstd and g = dy gain: dx = rstd (g - mean(g) - h mean(g h)).
void LayerNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* mean,
                           const float* rstd, const float* dy, int64_t rows, int64_t columns, float* dx, float* dgain,
                           float* dbias) {
  compute.ParallelFor(dx == nullptr ? 0 : rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    scratch.resize(std::max(scratch.size(), static_cast<size_t>(2 * columns)));
    float* const h = scratch.data();
    float* const g = h + columns;
    const auto count = static_cast<float>(columns);
    for (int64_t r = begin; r < end; ++r) {
      const float* const in = x + r * columns;
      const float* const out = dy + r * columns;
      float* const to = dx + r * columns;
      const float m = mean[r], s = rstd[r];
      for (int64_t c = 0; c < columns; ++c) {
        h[c] = (in[c] - m) * s;
        g[c] = out[c] * gain[c];
      }
      const float mean_g = Sum(g, columns) / count;
      const float mean_gh = Dot(g, h, columns) / count;
      for (int64_t c = 0; c < columns; ++c) to[c] += s * (g[c] - mean_g - h[c] * mean_gh);
    }
  });
  if (dbias != nullptr) AddRows(compute, dy, rows, columns, columns, dbias);
  if (dgain == nullptr) return;
  const auto normed = [=](int64_t r) { return [m = mean[r], s = rstd[r]](float value) { return (value - m) * s; }; };
  AddGainGradient(compute, x, dy, rows, columns, normed, dgain);
}

void RmsNormRows(const Compute& compute, const float* x, const float* gain, float epsilon, int64_t rows,
                 int64_t columns, float* y, float* rstd) {
  compute.ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    const auto count = static_cast<float>(columns);
    for (int64_t r = begin; r < end; ++r) {
      const float* const in = x + r * columns;
      float* const out = y + r * columns;
      const float s = InverseSqrt(SumSquares(in, columns) / count + epsilon);
      rstd[r] = s;
      for (int64_t c = 0; c < columns; ++c) out[c] = in[c] * s * gain[c];
    }
  });
}

// With h = x rstd and g = dy gain: dx = rstd (g - h mean(g h)).
void RmsNormRowsBackward(const Compute& compute, const float* x, const float* gain, const float* rstd, const float* dy,
                         int64_t rows, int64_t columns, float* dx, float* dgain) {
  compute.ParallelFor(dx == nullptr ? 0 : rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    scratch.resize(std::max(scratch.size(), static_cast<size_t>(columns)));
    float* const g = scratch.data();
    const auto count = static_cast<float>(columns);
    for (int64_t r = begin; r < end; ++r) {
      const float* const in = x + r * columns;
      const float* const out = dy + r * columns;
      float* const to = dx + r * columns;
      const float s = rstd[r];
      for (int64_t c = 0; c < columns; ++c) g[c] = out[c] * gain[c];
      const float mean_gh = Dot(g, in, columns) * s / count;
      for (int64_t c = 0; c < columns; ++c) to[c] += s * (g[c] - in[c] * s * mean_gh);
    }
  });
  if (dgain == nullptr) return;
  const auto normed = [=](int64_t r) { return [s = rstd[r]](float value) { return value * s; }; };
  AddGainGradient(compute, x, dy, rows, columns, normed, dgain);
}

void AddRows(const Compute& compute, const float* x, int64_t rows, int64_t columns, int64_t stride, float* y) {
  SumRows(compute, rows, columns, [&](int64_t begin, int64_t end, int64_t column, int64_t count) {
    float* const to = y + column;
    for (int64_t r = begin; r < end; ++r) {
      const float* const from = x + r * stride + column;
      FetchAhead(from, stride, count);
      for (int64_t c = 0; c < count; ++c) to[c] += from[c];
    }
  });
}

void Add(const Compute& compute, const float* x, int64_t n, float* y) {
  compute.ParallelFor(n, kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
}

void Add(const Compute& compute, const float* a, const float* b, int64_t n, float* y) {
  compute.ParallelFor(n, kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
  });
}

void Copy(const Compute& compute, const float* x, int64_t n, float* y) {
  compute.ParallelFor(n, kGrainElements, [&](int64_t begin, int64_t end) { std::copy(x + begin, x + end, y + begin); });
}

}  // namespace millrace::kernels
