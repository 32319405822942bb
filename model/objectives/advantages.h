// Computes what a policy is reinforced by: how much better an action, or a whole response, was than expected; and
// estimates of how far a policy is from another.
#pragma once

#include "absl/types/span.h"

namespace millrace::model {

// Generalised advantage estimation (Schulman et al. 2016, equation 16) over the tokens of one response, after whose
// last one nothing has a value:
//   δ_t = r_t + γ V_{t+1} - V_t,   A_t = δ_t + γ λ A_{t+1};   what the value function is to learn is A_t + V_t
// All spans are as long.
void GeneralizedAdvantages(absl::Span<const double> rewards, absl::Span<const double> values, double gamma,
                           double lambda, absl::Span<double> advantages);

// Of responses to one prompt (Shao et al. 2024, "DeepSeekMath", section 4.1): A_i = (r_i - mean) / (s + 1e-4), s: the
// standard deviation over n - 1; without `by_deviation` (Liu et al. 2025, "Dr. GRPO") r_i - mean. Returns s: a group
// where it is 0 teaches nothing. Requires at least two.
double GroupAdvantages(absl::Span<const double> rewards, bool by_deviation, absl::Span<double> advantages);

// Each response against the mean of the others to its prompt (Ahmadian et al. 2024, "Back to Basics", equation 7).
// Requires at least two.
void LeaveOneOutAdvantages(absl::Span<const double> rewards, absl::Span<double> advantages);

// A = (A - mean) / (deviation + 1e-8), with mean and deviation of the whole rollout.
void Whiten(double mean, double deviation, absl::Span<double> advantages);

// Of the divergence KL(π, π_reference) from one token drawn from π (Schulman 2020, "Approximating KL divergence"):
// k1 = log π - log π_reference; k3 = e^d - d - 1 >= 0 with d = log π_reference - log π, which counts as at most 20 and
// at least -20 in the power.
double K1(double log_probability, double reference);
double K3(double log_probability, double reference);

}  // namespace millrace::model
