#include "optim/sensitivity.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::optim {
namespace {

v1::Sensitivity About(double decay, double uncertainty_decay) {
  v1::Sensitivity about;
  about.set_by(v1::Sensitivity::ELEMENTS);
  about.set_decay(decay);
  about.set_uncertainty_decay(uncertainty_decay);
  return about;
}

TEST(Sensitivity, FollowsThePapersMeans) {
  const v1::Sensitivity about = About(0.85, 0.7);
  const std::vector<std::vector<float>> weights = {{0.5f, -2.0f, 0.0f}, {0.25f, -1.5f, 1.0f}, {-0.5f, 3.0f, 2.0f}};
  const std::vector<std::vector<float>> gradients = {{3.0f, 0.5f, 7.0f}, {-1.0f, 4.0f, 0.5f}, {2.0f, 0.0f, -1.0f}};
  std::vector<float> means(3), deviations(3);
  for (size_t step = 0; step < weights.size(); ++step) {
    TrackSensitivity(about, weights[step].data(), gradients[step].data(), 3, means.data(), deviations.data());
  }
  for (size_t i = 0; i < 3; ++i) {
    double mean = 0, deviation = 0;
    for (size_t step = 0; step < weights.size(); ++step) {
      const double importance = std::fabs(double{weights[step][i]} * double{gradients[step][i]});
      mean = 0.85 * mean + 0.15 * importance;
      deviation = 0.7 * deviation + 0.3 * std::fabs(importance - mean);
    }
    EXPECT_NEAR(means[i], mean, 1e-6);
    EXPECT_NEAR(deviations[i], deviation, 1e-6);
    EXPECT_NEAR(SensitivityScore(means[i], deviations[i]), mean * deviation, 1e-5);
  }
}

TEST(Sensitivity, WhatHasNoWeightOrNoGradientScoresNothing) {
  const std::vector<float> weights = {0.0f, 5.0f}, gradients = {5.0f, 0.0f};
  std::vector<float> means(2), deviations(2);
  TrackSensitivity(About(0.85, 0.85), weights.data(), gradients.data(), 2, means.data(), deviations.data());
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(SensitivityScore(means[i], deviations[i]), 0.0);
}

}  // namespace
}  // namespace millrace::optim
