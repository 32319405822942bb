// Learns from comparisons what people prefer: the loss of a reward model (Bradley and Terry 1952; as in Ouyang et al.
// 2022, equation 1, with the margin of Touvron et al. 2023, "Llama 2", equation 2).
//
//   d = r_chosen - r_rejected
//   loss of a comparison   -log σ(d - margin)
//   loss of a tie          -½ log σ(d) - ½ log σ(-d)
//   both + centring (r_chosen + r_rejected)²   (Eisenstein et al. 2023), which keeps rewards around 0
#pragma once

#include <array>
#include <cstdint>

#include "absl/types/span.h"

namespace millrace::model {

// Rewards of two responses to one prompt. Of a tie it does not matter which is called chosen.
struct RewardPair {
  double chosen = 0;
  double rejected = 0;
  double margin = 0;  // of no meaning for a tie
  bool tie = false;
};

// Sums over pairs, so that those of parts of a set add up.
struct RewardStatistics {
  static constexpr size_t kBins = 10;
  // Comparisons by the model's confidence in the response that it prefers, σ(|d|): bin i holds those in
  // [0.5 + i / 20, 0.5 + (i + 1) / 20). A calibrated model is right as often as it is confident.
  struct Bin {
    int64_t count = 0;
    double confidence = 0;  // their sum
    double right = 0;       // comparisons in which it prefers the chosen one
  };

  int64_t comparisons = 0;
  int64_t ties = 0;
  double loss = 0;     // of comparisons and ties
  double right = 0;    // comparisons with d > 0; d == 0 counts half
  double margin = 0;   // of d over comparisons
  double rewards = 0;  // of chosen and rejected ones over all
  std::array<Bin, kBins> calibration;
};

// Returns the sum of the pairs' losses and adds to `statistics`, whose loss is without `scale`. d_chosen and d_rejected
// [pairs] become `scale` times its derivatives. Requires no NaN.
double RewardLoss(absl::Span<const RewardPair> pairs, double centring, double scale, absl::Span<double> d_chosen,
                  absl::Span<double> d_rejected, RewardStatistics* statistics);

}  // namespace millrace::model
