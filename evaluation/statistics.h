// Estimates what a measurement over examples says of all examples of their kind, and of the difference of two models.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace millrace::evaluation {

// What an example contributes.
struct Term {
  double sum = 0;     // of log-probabilities in nats, or the example's own value
  double weight = 1;  // words or bytes that the sum is over
};

enum class Measure {
  kShare,         // the mean of zeros and ones
  kMean,          // of values
  kPerplexity,    // exp(-Σ sum / Σ weight)
  kBitsPerWeight  // -Σ sum / (ln 2 · Σ weight)
};

// NaN: there are too few examples to tell.
struct Estimate {
  double value = 0;
  double standard_error = 0;
  double low = 0, high = 0;  // 95 % confidence
};

// Requires a term, and weights that together are above 0 where they count.
//   kShare         standard error s/√n, s with n - 1; Wilson's interval
//   kMean          standard error s/√n; value ± 1.96 standard errors
//   the others     from kResamples bootstrap resamples of the examples, drawn by the seed (Efron 1979): the deviation
//                  of their values, and the 2.5 and 97.5 percent points between them
inline constexpr int kResamples = 1000;
Estimate EstimateOf(Measure measure, absl::Span<const Term> terms, uint64_t seed);

// The second less the first, by pairs of terms of the same example, so that what both find hard or easy cancels out.
struct Difference {
  Estimate estimate;
  // kShare: examples in which the second is right and the first wrong, and the other way round.
  uint64_t better = 0, worse = 0;
  // kShare: McNemar's exact two-sided test of whether these two are equally likely; else NaN.
  double p_value = 0;
};
// Requires as many terms of both. The interval of shares and means is the normal one of the paired differences; of
// perplexities, the bootstrap's, whose resamples draw both terms of an example together.
Difference DifferenceOf(Measure measure, absl::Span<const Term> first, absl::Span<const Term> second, uint64_t seed);

// The probability that of k samples one passes, unbiased, when `passed` of n did; k <= n:
//   1 - C(n - passed, k) / C(n, k)                               Chen et al. 2021, "Evaluating LLMs trained on code",
//   eq. 1
double PassAtK(uint64_t n, uint64_t passed, uint64_t k);

struct Interval {
  double low = 0, high = 0;
};
// Of a share, 95 % (Wilson 1927). Requires n > 0.
Interval WilsonInterval(uint64_t successes, uint64_t n);

// Of b against c: the two-sided binomial test with p = 1/2, 1 if both are 0.
double McNemarPValue(uint64_t b, uint64_t c);

}  // namespace millrace::evaluation
