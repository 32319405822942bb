// Learns from preferences without a reward model: DPO, IPO, ORPO and KTO. Their inputs are log-probabilities of whole
// responses, summed over the tokens of the response; derivatives by such a sum are those by each of its tokens.
//
//   Δ = log π(response) - log π_reference(response)
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace millrace::model {

// Two responses to one prompt: sums of log-probabilities under the policy and the reference.
struct PreferencePair {
  double chosen = 0;
  double rejected = 0;
  double reference_chosen = 0;
  double reference_rejected = 0;
  // Tokens of the responses; what takes means needs them, at least 1.
  int64_t chosen_tokens = 0;
  int64_t rejected_tokens = 0;
};

// Sums over pairs, so that those of parts of a set add up. The implicit reward of a response is β Δ (ORPO, which has no
// reference: β times its mean log-probability).
struct PreferenceStatistics {
  int64_t pairs = 0;
  double loss = 0;
  double right = 0;  // pairs whose chosen response has the larger reward; equal ones count half
  double chosen_reward = 0;
  double rejected_reward = 0;
};

// Each returns the sum of the losses and adds to `statistics`, whose loss is without `scale`. Derivatives, [pairs]
// each, become `scale` times those of the sum. Require no NaN and beta > 0.

// Rafailov et al. 2023, equation 7, with the label smoothing of Mitchell 2023 ("conservative DPO"):
//   h = β (Δ_chosen - Δ_rejected),   loss = -(1 - smoothing) log σ(h) - smoothing log σ(-h),   0 <= smoothing < ½
double DpoLoss(absl::Span<const PreferencePair> pairs, double beta, double smoothing, double scale,
               absl::Span<double> d_chosen, absl::Span<double> d_rejected, PreferenceStatistics* statistics);

// Azar et al. 2023, equation 17: loss = (Δ_chosen - Δ_rejected - 1 / (2 β))². `means`: Δ are means over the tokens, as
// TRL takes them; else sums, as the paper and OpenRLHF.
double IpoLoss(absl::Span<const PreferencePair> pairs, double beta, bool means, double scale,
               absl::Span<double> d_chosen, absl::Span<double> d_rejected, PreferenceStatistics* statistics);

// Hong et al. 2024, equations 6 and 7, less the first term -log π(chosen), which is CausalLm's of prompt and response:
//   p = exp(mean log-probability),   odds = p / (1 - p),   loss = -β log σ(log odds_chosen - log odds_rejected)
// The reference's log-probabilities have no part in it. A mean nearer to 0 than -1e-7 counts as that.
double OrpoLoss(absl::Span<const PreferencePair> pairs, double beta, double scale, absl::Span<double> d_chosen,
                absl::Span<double> d_rejected, PreferenceStatistics* statistics);

// A response that is desirable or not.
struct RatedResponse {
  double policy = 0;  // summed log-probabilities
  double reference = 0;
  bool desirable = false;
};

struct KtoOptions {
  double beta = 0.1;
  double desirable_weight = 1;
  double undesirable_weight = 1;
};

struct KtoStatistics {
  int64_t desirable = 0;
  int64_t undesirable = 0;
  double loss = 0;
  double desirable_reward = 0;  // sums of β Δ
  double undesirable_reward = 0;
  double reference_point = 0;  // sum of z over the calls, each times its responses
};

// The point that KTO measures from: z = max(0, mean of Δ over mismatched pairs), an estimate of the divergence between
// policy and reference. `mismatched` are Δ of responses to other prompts of the same microbatch; empty: 0.
double KtoReferencePoint(absl::Span<const double> mismatched);

// Ethayarajh et al. 2024, equation 7 with β within, as its code has it; no derivative goes through z:
//   desirable: w_D (1 - σ(β (Δ - z))),   undesirable: w_U (1 - σ(β (z - Δ)))
// d_policy: [responses].
double KtoLoss(absl::Span<const RatedResponse> responses, double reference_point, const KtoOptions& options,
               double scale, absl::Span<double> d_policy, KtoStatistics* statistics);

}  // namespace millrace::model
