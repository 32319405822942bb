#include "coordinator/agreement.h"

#include <algorithm>
#include <array>
#include <map>

namespace millrace::coordinator {
namespace {

constexpr size_t kCategories = 3;  // A, B, TIE

void SetValue(Kappa* kappa) {
  if (kappa->items > 0 && kappa->expected < 1) {
    kappa->value = (kappa->observed - kappa->expected) / (1 - kappa->expected);
  }
}

uint32_t CategoryOf(const v1::Rating& rating) { return static_cast<uint32_t>(rating.choice() - v1::Rating::A); }

// The choices of one pair, by rater.
using Choices = std::vector<std::pair<std::string, uint32_t>>;

Kappa KappaOfTwo(const std::map<uint64_t, Choices>& pairs) {
  std::vector<std::pair<uint32_t, uint32_t>> both;
  for (const auto& [pair, choices] : pairs) {
    if (choices.size() != 2) continue;
    // The raters' order must be the same for all pairs.
    const bool in_order = choices[0].first < choices[1].first;
    both.emplace_back(choices[in_order ? 0 : 1].second, choices[in_order ? 1 : 0].second);
  }
  return CohenKappa(both);
}

// The number of choices, at least 2, that most pairs have; 0 if no pair has two.
uint32_t UsualNumber(const std::map<uint64_t, Choices>& pairs) {
  std::map<size_t, uint64_t> pairs_with;
  for (const auto& [pair, choices] : pairs) {
    if (choices.size() >= 2) ++pairs_with[choices.size()];
  }
  size_t usual = 0;
  uint64_t most = 0;
  for (const auto& [number, count] : pairs_with) {
    if (count >= most) {
      usual = number;
      most = count;
    }
  }
  return static_cast<uint32_t>(usual);
}

Kappa KappaOfMany(const std::map<uint64_t, Choices>& pairs, uint32_t number) {
  std::vector<std::vector<uint32_t>> counts;
  for (const auto& [pair, choices] : pairs) {
    if (number == 0 || choices.size() != number) continue;
    std::vector<uint32_t>& row = counts.emplace_back(kCategories, 0u);
    for (const auto& [rater, category] : choices) ++row[category];
  }
  return FleissKappa(counts);
}

}  // namespace

Kappa CohenKappa(absl::Span<const std::pair<uint32_t, uint32_t>> choices) {
  Kappa kappa;
  kappa.items = choices.size();
  if (choices.empty()) return kappa;
  std::map<uint32_t, std::array<double, 2>> chosen;  // category -> how often by each
  double equal = 0;
  for (const auto& [first, second] : choices) {
    equal += first == second;
    ++chosen[first][0];
    ++chosen[second][1];
  }
  const auto items = static_cast<double>(choices.size());
  kappa.observed = equal / items;
  for (const auto& [category, times] : chosen) kappa.expected += (times[0] / items) * (times[1] / items);
  SetValue(&kappa);
  return kappa;
}

Kappa FleissKappa(absl::Span<const std::vector<uint32_t>> counts) {
  Kappa kappa;
  kappa.items = counts.size();
  if (counts.empty()) return kappa;
  std::vector<double> chosen(counts[0].size(), 0.0);
  double raters = 0;
  for (const uint32_t count : counts[0]) raters += count;
  double agreeing = 0;
  for (const std::vector<uint32_t>& row : counts) {
    double same = 0;
    for (size_t k = 0; k < row.size(); ++k) {
      const double count = row[k];
      same += count * (count - 1);
      chosen[k] += count;
    }
    agreeing += same / (raters * (raters - 1));
  }
  const auto items = static_cast<double>(counts.size());
  kappa.observed = agreeing / items;
  for (const double times : chosen) kappa.expected += (times / (items * raters)) * (times / (items * raters));
  SetValue(&kappa);
  return kappa;
}

Agreement AgreementOf(absl::Span<const PairRating> ratings) {
  std::map<uint64_t, Choices> pairs;
  std::map<std::string, RaterAgreement> raters;
  for (const PairRating& of_pair : ratings) {
    const v1::Rating& rating = of_pair.rating;
    RaterAgreement& rater = raters[rating.rater()];
    rater.rater = rating.rater();
    rater.flagged += rating.flagged();
    if (rating.choice() == v1::Rating::SKIP) {
      ++rater.skipped;
      continue;
    }
    ++rater.rated;
    pairs[of_pair.pair].emplace_back(rating.rater(), CategoryOf(rating));
  }
  size_t choosing = 0;
  for (const auto& [name, rater] : raters) choosing += rater.rated > 0;
  for (const auto& [pair, choices] : pairs) {
    for (const auto& [name, category] : choices) {
      RaterAgreement& rater = raters[name];
      for (const auto& [other, others_category] : choices) {
        if (other == name) continue;
        ++rater.compared;
        rater.equal += category == others_category;
      }
    }
  }
  Agreement agreement;
  agreement.fleiss = choosing > 2;
  agreement.choices_a_pair = UsualNumber(pairs);
  agreement.kappa = agreement.fleiss ? KappaOfMany(pairs, agreement.choices_a_pair) : KappaOfTwo(pairs);
  for (auto& [name, rater] : raters) agreement.raters.push_back(std::move(rater));
  return agreement;
}

}  // namespace millrace::coordinator
