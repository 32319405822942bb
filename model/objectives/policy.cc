#include "model/objectives/policy.h"

#include <algorithm>

#include "kernels/functions.h"
#include "model/objectives/advantages.h"

namespace millrace::model {
namespace {

constexpr double kLargestDifference = 20;

struct Ratio {
  double value = 0;
  double slope = 0;  // by log π; 0 where the difference was cut off
};

Ratio RatioOf(double difference) {
  if (difference != difference) return {difference, difference};
  const double within = std::clamp(difference, -kLargestDifference, kLargestDifference);
  const double value = kernels::ExpInF64(within);
  return {value, within == difference ? value : 0.0};
}

struct Surrogate {
  double value = 0;
  double slope = 0;  // by the ratio
};

Surrogate SurrogateOf(double ratio, double advantage, const PolicyOptions& options) {
  const double clipped = std::clamp(ratio, 1 - options.clip_low, 1 + options.clip_high);
  Surrogate surrogate = {ratio * advantage, advantage};
  if (clipped * advantage < surrogate.value) surrogate = {clipped * advantage, 0};
  if (options.dual_clip > 0 && advantage < 0 && options.dual_clip * advantage > surrogate.value) {
    surrogate = {options.dual_clip * advantage, 0};
  }
  return surrogate;
}

void Count(double difference, const Ratio& ratio, double advantage, const Surrogate& surrogate,
           PolicyStatistics* statistics) {
  ++statistics->count;
  statistics->clipped += advantage != 0 && surrogate.slope == 0 ? 1 : 0;
  statistics->ratio += ratio.value;
  statistics->divergence += K3(-difference, 0.0);
}

}  // namespace

double PolicyLoss(const PolicyTokens& tokens, const PolicyOptions& options, double scale,
                  absl::Span<float> d_log_probabilities, absl::Span<float> d_entropies, PolicyStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < tokens.log_probabilities.size(); ++i) {
    const auto log_probability = static_cast<double>(tokens.log_probabilities[i]);
    const double difference = log_probability - static_cast<double>(tokens.old_log_probabilities[i]);
    const Ratio ratio = RatioOf(difference);
    const Surrogate surrogate = SurrogateOf(ratio.value, tokens.advantages[i], options);
    double loss = -surrogate.value, slope = -surrogate.slope * ratio.slope;
    if (!tokens.reference_log_probabilities.empty()) {
      const auto reference = static_cast<double>(tokens.reference_log_probabilities[i]);
      const double divergence = K3(log_probability, reference);
      // d k3 / d log π = 1 - e^(log π_reference - log π), with the power cut off as in k3.
      const Ratio power = RatioOf(reference - log_probability);
      const double factor = options.kl_by_ratio ? ratio.value : 1.0;
      const double factor_slope = options.kl_by_ratio ? ratio.slope : 0.0;
      loss += options.kl_coefficient * factor * divergence;
      slope += options.kl_coefficient * (factor * (1 - power.slope) + factor_slope * divergence);
      statistics->reference_divergence += divergence;
    }
    if (!tokens.entropies.empty()) {
      const auto entropy = static_cast<double>(tokens.entropies[i]);
      loss -= options.entropy_coefficient * entropy;
      statistics->entropy += entropy;
      d_entropies[i] = static_cast<float>(scale * -options.entropy_coefficient);
    }
    d_log_probabilities[i] = static_cast<float>(scale * slope);
    sum += loss;
    statistics->loss += loss;
    Count(difference, ratio, tokens.advantages[i], surrogate, statistics);
  }
  return sum;
}

double SequencePolicyLoss(absl::Span<const PolicyResponse> responses, const PolicyOptions& options, double scale,
                          absl::Span<double> d_log_probabilities, PolicyStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < responses.size(); ++i) {
    const PolicyResponse& response = responses[i];
    const double difference = response.log_probability - response.old_log_probability;
    const Ratio ratio = RatioOf(difference);
    const Surrogate surrogate = SurrogateOf(ratio.value, response.advantage, options);
    d_log_probabilities[i] = scale * (-surrogate.slope * ratio.slope);
    sum -= surrogate.value;
    statistics->loss -= surrogate.value;
    Count(difference, ratio, response.advantage, surrogate, statistics);
  }
  return sum;
}

double ValueLoss(absl::Span<const float> values, absl::Span<const float> old_values, absl::Span<const double> returns,
                 double clip, double scale, absl::Span<float> d_values, ValueStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<double>(values[i]);
    const auto old_value = static_cast<double>(old_values[i]);
    const double error = value - returns[i];
    double squares = error * error, slope = error;
    if (clip > 0) {
      const double clipped = old_value + std::clamp(value - old_value, -clip, clip) - returns[i];
      if (clipped * clipped > squares) {
        squares = clipped * clipped;
        slope = 0;
        ++statistics->clipped;
      }
    }
    d_values[i] = static_cast<float>(scale * slope);
    sum += 0.5 * squares;
    ++statistics->count;
    statistics->loss += 0.5 * squares;
    statistics->error_squares += error * error;
    statistics->returns += returns[i];
    statistics->return_squares += returns[i] * returns[i];
  }
  return sum;
}

}  // namespace millrace::model
