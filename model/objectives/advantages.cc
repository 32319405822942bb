#include "model/objectives/advantages.h"

#include <algorithm>
#include <cmath>

#include "kernels/functions.h"

namespace millrace::model {
namespace {

double Mean(absl::Span<const double> numbers) {
  double sum = 0;
  for (const double number : numbers) sum += number;
  return sum / static_cast<double>(numbers.size());
}

}  // namespace

void GeneralizedAdvantages(absl::Span<const double> rewards, absl::Span<const double> values, double gamma,
                           double lambda, absl::Span<double> advantages) {
  double next_value = 0, next_advantage = 0;
  for (size_t t = rewards.size(); t-- > 0;) {
    const double surprise = rewards[t] + gamma * next_value - values[t];
    next_advantage = surprise + gamma * lambda * next_advantage;
    next_value = values[t];
    advantages[t] = next_advantage;
  }
}

double GroupAdvantages(absl::Span<const double> rewards, bool by_deviation, absl::Span<double> advantages) {
  const double mean = Mean(rewards);
  double squares = 0;
  for (const double reward : rewards) squares += (reward - mean) * (reward - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(rewards.size() - 1));
  for (size_t i = 0; i < rewards.size(); ++i) {
    advantages[i] = by_deviation ? (rewards[i] - mean) / (deviation + 1e-4) : rewards[i] - mean;
  }
  return deviation;
}

void LeaveOneOutAdvantages(absl::Span<const double> rewards, absl::Span<double> advantages) {
  const auto count = static_cast<double>(rewards.size());
  const double mean = Mean(rewards);
  for (size_t i = 0; i < rewards.size(); ++i) advantages[i] = (rewards[i] - mean) * (count / (count - 1));
}

void Whiten(double mean, double deviation, absl::Span<double> advantages) {
  for (double& advantage : advantages) advantage = (advantage - mean) / (deviation + 1e-8);
}

double K1(double log_probability, double reference) { return log_probability - reference; }

double K3(double log_probability, double reference) {
  const double d = reference - log_probability;
  if (d != d) return d;
  return kernels::Expm1InF64(std::clamp(d, -20.0, 20.0)) - d;
}

}  // namespace millrace::model
