// Reinforces a policy by what its responses were worth: the clipped surrogates of PPO and GRPO (a ratio a token) and of
// RLOO (a ratio a response), with entropy and divergence, and the clipped loss of a value function.
//
//   ρ = exp(log π - log π_old),   surrogate = min(ρ A, clip(ρ, 1 - low, 1 + high) A)
//   loss = Σ over tokens: -surrogate - entropy_coefficient H + kl_coefficient [ρ] k3(π, π_reference)
//
// Losses are sums; `scale` normalises: 1 / (tokens of the global batch) is GRPO's loss "dapo" (Yu et al. 2025) and
// PPO's mean over tokens, 1 / (responses x longest allowed response) is "dr_grpo" (Liu et al. 2025).
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace millrace::model {

struct PolicyOptions {
  // Schulman et al. 2017, equation 7; high > low is DAPO's "clip higher".
  double clip_low = 0.2;
  double clip_high = 0.2;
  // Of negative advantages the surrogate is at least this times A (Ye et al. 2020, equation 5); above 1, or 0: off.
  double dual_clip = 0;
  double entropy_coefficient = 0;
  double kl_coefficient = 0;
  // Multiplies k3 by ρ, so that its gradient is that of the divergence though tokens were drawn from π_old.
  bool kl_by_ratio = true;
};

// Sums over tokens (RLOO: over responses), so that those of parts of a set add up.
struct PolicyStatistics {
  int64_t count = 0;
  double loss = 0;
  int64_t clipped = 0;  // where a clip decides, so that there is no gradient
  double ratio = 0;
  double divergence = 0;            // k3 of π_old from π: how far this update has gone
  double reference_divergence = 0;  // k3 of π from the reference; tokens with one
  double entropy = 0;               // of tokens with one
};

// Of some tokens. All spans are as long, or empty where that is said.
struct PolicyTokens {
  absl::Span<const float> log_probabilities;
  absl::Span<const float> old_log_probabilities;
  absl::Span<const double> advantages;
  absl::Span<const float> reference_log_probabilities;  // empty: there is no divergence
  absl::Span<const float> entropies;                    // empty: no part in this
};

// PPO's and GRPO's loss. Returns the sum and adds to `statistics`, whose loss is without `scale`. d_log_probabilities
// [tokens] and d_entropies ([tokens]; empty if there are no entropies) become `scale` times its derivatives, rounded
// once. A difference of log-probabilities counts as at most 20 and at least -20. Requires coefficients of 0 for what is
// empty.
double PolicyLoss(const PolicyTokens& tokens, const PolicyOptions& options, double scale,
                  absl::Span<float> d_log_probabilities, absl::Span<float> d_entropies, PolicyStatistics* statistics);

// A response: log-probabilities summed over its tokens.
struct PolicyResponse {
  double log_probability = 0;
  double old_log_probability = 0;
  double advantage = 0;
};

// RLOO's loss (Ahmadian et al. 2024): the surrogate with one ratio for the response. d_log_probabilities: [responses],
// derivatives by the sums, hence by each token. Of the options only the clips count.
double SequencePolicyLoss(absl::Span<const PolicyResponse> responses, const PolicyOptions& options, double scale,
                          absl::Span<double> d_log_probabilities, PolicyStatistics* statistics);

struct ValueStatistics {
  int64_t count = 0;
  double loss = 0;
  int64_t clipped = 0;       // where the clip decides
  double error_squares = 0;  // of V - return
  double returns = 0;
  double return_squares = 0;  // explained variance: 1 - mean square error / variance of the returns
};

// loss = Σ ½ max((V - R)², (V_old + clip(V - V_old, ±clip) - R)²); clip 0: without the second term. d_values become
// `scale` times its derivatives, rounded once. All spans are as long.
double ValueLoss(absl::Span<const float> values, absl::Span<const float> old_values, absl::Span<const double> returns,
                 double clip, double scale, absl::Span<float> d_values, ValueStatistics* statistics);

}  // namespace millrace::model
