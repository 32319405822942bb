// Measures how far people who rated the same pairs agree, beyond what chance would give.
//
// kappa = (P_o − P_e) / (1 − P_e): 1 is full agreement, 0 what raters would have who choose at random with the observed
// frequencies; it can be negative. P_o and P_e are the observed and the expected share of equal choices.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "proto/millrace/v1/ratings.pb.h"

namespace millrace::coordinator {

struct Kappa {
  uint64_t items = 0;           // pairs that it is over
  double observed = 0;          // P_o
  double expected = 0;          // P_e
  std::optional<double> value;  // absent without items, and where all choices are equal: 0 / 0
};

// Of two raters, from the categories 0, 1, … that each of them chose for every item. P_e = Σ_k p_1k p_2k, with the
// frequency p_rk of category k in the choices of rater r.
//
// Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20, 1960, p. 40.
Kappa CohenKappa(absl::Span<const std::pair<uint32_t, uint32_t>> choices);

// Of any raters, from [items][categories] numbers of raters who chose each; every item has the same number n ≥ 2 of
// them, who need not be the same people. P_o = mean over items of Σ_k n_k (n_k − 1) / (n (n − 1)); P_e = Σ_k p_k², with
// the frequency p_k of category k in all choices.
//
// Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 1971, equations 2 to 7.
Kappa FleissKappa(absl::Span<const std::vector<uint32_t>> counts);

// One rating with the pair that it is of.
struct PairRating {
  uint64_t pair = 0;
  v1::Rating rating;
};

struct RaterAgreement {
  std::string rater;
  uint64_t rated = 0;  // without skips
  uint64_t skipped = 0;
  uint64_t flagged = 0;
  uint64_t compared = 0;  // choices of others for the same pairs …
  uint64_t equal = 0;     // … and those of them that are the rater's own
};

struct Agreement {
  std::vector<RaterAgreement> raters;  // by name
  bool fleiss = false;                 // else Cohen's
  uint32_t choices_a_pair = 0;         // of the pairs that kappa is over
  Kappa kappa;
};

// Skips are left out; A, B and TIE are the categories. With two raters it is Cohen's kappa over the pairs that both
// rated, with more Fleiss' over the pairs with n choices, n ≥ 2 being the number that most pairs have (the larger of
// two).
Agreement AgreementOf(absl::Span<const PairRating> ratings);

}  // namespace millrace::coordinator
