// Tracks how much a loss depends on each weight, from step to step, and scores weights by it (Zhang et al. 2023,
// AdaLoRA, section 3.2, equations 8 to 10): of a weight w and its gradient g,
//
//   I = |w g|
//   mean      = decay mean + (1 - decay) I
//   deviation = uncertainty_decay deviation + (1 - uncertainty_decay) |I - mean|
//   score     = mean deviation
//
// w is the weight at which g was computed, before the optimizer changes it.
#pragma once

#include <cstdint>

#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::optim {

// Values of state that each element has: its mean and its deviation; zeros at the start.
inline constexpr int64_t kSensitivityState = 2;

// Takes a step's gradient in. All arrays are [size]; elementwise f32.
void TrackSensitivity(const v1::Sensitivity& about, const float* weights, const float* gradient, int64_t size,
                      float* means, float* deviations);

inline double SensitivityScore(float mean, float deviation) {
  return static_cast<double>(mean) * static_cast<double>(deviation);
}

}  // namespace millrace::optim
