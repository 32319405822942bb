#include "model/objectives/preference.h"

#include <algorithm>

#include "kernels/functions.h"

namespace millrace::model {
namespace {

using kernels::LogSigmoidInF64;
using kernels::SigmoidInF64;

void Count(double loss, double chosen_reward, double rejected_reward, PreferenceStatistics* statistics) {
  ++statistics->pairs;
  statistics->loss += loss;
  statistics->right += chosen_reward > rejected_reward ? 1.0 : chosen_reward < rejected_reward ? 0.0 : 0.5;
  statistics->chosen_reward += chosen_reward;
  statistics->rejected_reward += rejected_reward;
}

}  // namespace

double DpoLoss(absl::Span<const PreferencePair> pairs, double beta, double smoothing, double scale,
               absl::Span<double> d_chosen, absl::Span<double> d_rejected, PreferenceStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const PreferencePair& pair = pairs[i];
    const double chosen = beta * (pair.chosen - pair.reference_chosen);
    const double rejected = beta * (pair.rejected - pair.reference_rejected);
    const double h = chosen - rejected;
    const double loss = -(1 - smoothing) * LogSigmoidInF64(h) - smoothing * LogSigmoidInF64(-h);
    const double slope = smoothing * SigmoidInF64(h) - (1 - smoothing) * SigmoidInF64(-h);
    d_chosen[i] = scale * (beta * slope);
    d_rejected[i] = -d_chosen[i];
    sum += loss;
    Count(loss, chosen, rejected, statistics);
  }
  return sum;
}

double IpoLoss(absl::Span<const PreferencePair> pairs, double beta, bool means, double scale,
               absl::Span<double> d_chosen, absl::Span<double> d_rejected, PreferenceStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const PreferencePair& pair = pairs[i];
    const double chosen_count = means ? static_cast<double>(pair.chosen_tokens) : 1.0;
    const double rejected_count = means ? static_cast<double>(pair.rejected_tokens) : 1.0;
    const double chosen = (pair.chosen - pair.reference_chosen) / chosen_count;
    const double rejected = (pair.rejected - pair.reference_rejected) / rejected_count;
    const double distance = chosen - rejected - 1 / (2 * beta);
    d_chosen[i] = scale * (2 * distance / chosen_count);
    d_rejected[i] = scale * (-2 * distance / rejected_count);
    sum += distance * distance;
    Count(distance * distance, beta * chosen, beta * rejected, statistics);
  }
  return sum;
}

double OrpoLoss(absl::Span<const PreferencePair> pairs, double beta, double scale, absl::Span<double> d_chosen,
                absl::Span<double> d_rejected, PreferenceStatistics* statistics) {
  constexpr double kLargest = -1e-7;
  struct Odds {
    double mean = 0;
    double logarithm = 0;
    double slope = 0;  // by the summed log-probability
  };
  // log odds = m - log(1 - e^m);  d/dm = 1 / (1 - e^m).
  const auto odds_of = [kLargest](double log_probability, int64_t tokens) {
    const auto count = static_cast<double>(tokens);
    const double mean = log_probability / count, within = std::clamp(mean, -700.0, kLargest);
    Odds odds = {mean, within - kernels::Log1mExpInF64(within), 0};
    if (within == mean) odds.slope = -1 / (kernels::Expm1InF64(within) * count);
    return odds;
  };
  double sum = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const Odds chosen = odds_of(pairs[i].chosen, pairs[i].chosen_tokens);
    const Odds rejected = odds_of(pairs[i].rejected, pairs[i].rejected_tokens);
    const double ratio = chosen.logarithm - rejected.logarithm;
    const double loss = -beta * LogSigmoidInF64(ratio);
    const double slope = -beta * SigmoidInF64(-ratio);
    d_chosen[i] = scale * (slope * chosen.slope);
    d_rejected[i] = scale * (-slope * rejected.slope);
    sum += loss;
    Count(loss, beta * chosen.mean, beta * rejected.mean, statistics);
  }
  return sum;
}

double KtoReferencePoint(absl::Span<const double> mismatched) {
  double sum = 0;
  for (const double difference : mismatched) sum += difference;
  return sum > 0 ? sum / static_cast<double>(mismatched.size()) : 0.0;
}

double KtoLoss(absl::Span<const RatedResponse> responses, double reference_point, const KtoOptions& options,
               double scale, absl::Span<double> d_policy, KtoStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < responses.size(); ++i) {
    const RatedResponse& response = responses[i];
    const double difference = response.policy - response.reference;
    const double sign = response.desirable ? 1.0 : -1.0;
    const double weight = response.desirable ? options.desirable_weight : options.undesirable_weight;
    const double value = sign * options.beta * (difference - reference_point);
    // 1 - σ(x) = σ(-x);  d/dx = -σ(x) σ(-x).
    const double loss = weight * SigmoidInF64(-value);
    d_policy[i] = scale * (-weight * sign * options.beta * SigmoidInF64(value) * SigmoidInF64(-value));
    sum += loss;
    ++(response.desirable ? statistics->desirable : statistics->undesirable);
    (response.desirable ? statistics->desirable_reward : statistics->undesirable_reward) += options.beta * difference;
    statistics->loss += loss;
    statistics->reference_point += reference_point;
  }
  return sum;
}

}  // namespace millrace::model
