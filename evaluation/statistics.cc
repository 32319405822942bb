#include "evaluation/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "common/philox.h"
#include "kernels/functions.h"

namespace millrace::evaluation {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr double kNormal95 = 1.959963984540054;
constexpr uint64_t kResamplingPurpose = 0x424F4F5453545250;  // "BOOTSTRP"

bool IsMean(Measure measure) { return measure == Measure::kShare || measure == Measure::kMean; }

double Exp(double x) {
  if (x > 700) return std::numeric_limits<double>::infinity();
  return x < -700 ? 0 : kernels::ExpInF64(x);
}

double ValueOf(Measure measure, double sum, double weight) {
  switch (measure) {
    case Measure::kShare:
    case Measure::kMean:
      return sum / weight;
    case Measure::kPerplexity:
      return Exp(-sum / weight);
    case Measure::kBitsPerWeight:
      return -sum / std::numbers::ln2 / weight;
  }
  return kUnknown;
}

double Value(Measure measure, absl::Span<const Term> terms) {
  double sum = 0, weight = 0;
  for (const Term& term : terms) {
    sum += term.sum;
    weight += IsMean(measure) ? 1 : term.weight;
  }
  return ValueOf(measure, sum, weight);
}

// The standard deviation, with n - 1.
double Deviation(absl::Span<const double> values) {
  if (values.size() < 2) return kUnknown;
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += (value - sum / n) * (value - sum / n);
  return std::sqrt(squares / (n - 1));
}

Estimate Normal(absl::Span<const double> values) {
  Estimate estimate;
  double sum = 0;
  for (const double value : values) sum += value;
  const auto n = static_cast<double>(values.size());
  estimate.value = sum / n;
  estimate.standard_error = Deviation(values) / std::sqrt(n);
  estimate.low = estimate.value - kNormal95 * estimate.standard_error;
  estimate.high = estimate.value + kNormal95 * estimate.standard_error;
  return estimate;
}

// Calls `each` with the examples of each resample.
template <typename Each>
void Resample(size_t n, uint64_t seed, Each each) {
  const Philox key = Philox(seed).Derive(kResamplingPurpose);
  std::vector<size_t> drawn(n);
  for (uint64_t resample = 0; resample < kResamples; ++resample) {
    for (size_t i = 0; i < n; i += 2) {
      const auto words = key(resample, i);
      for (size_t k = 0; k < 2 && i + k < n; ++k) {
        const uint64_t word = words[2 * k] | uint64_t{words[2 * k + 1]} << 32;
        drawn[i + k] = static_cast<size_t>((static_cast<unsigned __int128>(word) * n) >> 64);
      }
    }
    each(drawn);
  }
}

double ValueOfDrawn(Measure measure, absl::Span<const Term> terms, const std::vector<size_t>& drawn) {
  double sum = 0, weight = 0;
  for (const size_t i : drawn) {
    sum += terms[i].sum;
    weight += terms[i].weight;
  }
  return ValueOf(measure, sum, weight);
}

// Between the sorted values, at `share` of the way from the first to the last.
double Point(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Estimate OfResamples(double value, std::vector<double> values) {
  Estimate estimate;
  estimate.value = value;
  estimate.standard_error = Deviation(values);
  std::sort(values.begin(), values.end());
  estimate.low = Point(values, 0.025);
  estimate.high = Point(values, 0.975);
  return estimate;
}

Estimate Unknown(double value) { return {value, kUnknown, kUnknown, kUnknown}; }

}  // namespace

Estimate EstimateOf(Measure measure, absl::Span<const Term> terms, uint64_t seed) {
  if (IsMean(measure)) {
    std::vector<double> values;
    for (const Term& term : terms) values.push_back(term.sum);
    Estimate estimate = Normal(values);
    if (measure == Measure::kShare) {
      const auto successes = static_cast<uint64_t>(std::count(values.begin(), values.end(), 1.0));
      const Interval interval = WilsonInterval(successes, values.size());
      estimate.low = interval.low;
      estimate.high = interval.high;
    }
    return estimate;
  }
  if (terms.size() < 2) return Unknown(Value(measure, terms));
  std::vector<double> values;
  Resample(terms.size(), seed,
           [&](const std::vector<size_t>& drawn) { values.push_back(ValueOfDrawn(measure, terms, drawn)); });
  return OfResamples(Value(measure, terms), std::move(values));
}

Difference DifferenceOf(Measure measure, absl::Span<const Term> first, absl::Span<const Term> second, uint64_t seed) {
  Difference difference;
  difference.p_value = kUnknown;
  if (IsMean(measure)) {
    std::vector<double> values;
    for (size_t i = 0; i < first.size(); ++i) {
      values.push_back(second[i].sum - first[i].sum);
      difference.better += values.back() > 0 ? 1 : 0;
      difference.worse += values.back() < 0 ? 1 : 0;
    }
    difference.estimate = Normal(values);
    if (measure == Measure::kShare) difference.p_value = McNemarPValue(difference.better, difference.worse);
    return difference;
  }
  const double value = Value(measure, second) - Value(measure, first);
  if (first.size() < 2) {
    difference.estimate = Unknown(value);
    return difference;
  }
  std::vector<double> values;
  Resample(first.size(), seed, [&](const std::vector<size_t>& drawn) {
    values.push_back(ValueOfDrawn(measure, second, drawn) - ValueOfDrawn(measure, first, drawn));
  });
  difference.estimate = OfResamples(value, std::move(values));
  return difference;
}

double PassAtK(uint64_t n, uint64_t passed, uint64_t k) {
  if (n - passed < k) return 1;
  double none = 1;
  for (uint64_t i = n - passed + 1; i <= n; ++i) none *= 1 - static_cast<double>(k) / static_cast<double>(i);
  return 1 - none;
}

Interval WilsonInterval(uint64_t successes, uint64_t n) {
  const auto count = static_cast<double>(n);
  const double share = static_cast<double>(successes) / count, z2 = kNormal95 * kNormal95;
  const double centre = (share + z2 / (2 * count)) / (1 + z2 / count);
  const double half = kNormal95 / (1 + z2 / count) * std::sqrt(share * (1 - share) / count + z2 / (4 * count * count));
  // Rounding may leave a trace beyond the ends, which the interval reaches exactly.
  return {successes == 0 ? 0 : centre - half, successes == n ? 1 : centre + half};
}

double McNemarPValue(uint64_t b, uint64_t c) {
  const uint64_t n = b + c, less = std::min(b, c);
  if (b == c) return 1;
  // 2 Σ_{i <= less} C(n, i) / 2^n, terms by their logarithms.
  double log_term = -static_cast<double>(n) * std::numbers::ln2, tail = 0;
  for (uint64_t i = 0; i <= less; ++i) {
    if (i > 0) log_term += kernels::LogInF64(static_cast<double>(n - i + 1) / static_cast<double>(i));
    tail += Exp(log_term);
  }
  return std::min(1.0, 2 * tail);
}

}  // namespace millrace::evaluation
