#include "optim/sensitivity.h"

#include <cmath>

#include "kernels/compute.h"

namespace millrace::optim {

void TrackSensitivity(const v1::Sensitivity& about, const float* weights, const float* gradient, int64_t size,
                      float* means, float* deviations) {
  const kernels::FlushDenormals flush;
  const auto keep = static_cast<float>(about.decay()), rest = static_cast<float>(1.0 - about.decay());
  const auto keep_deviation = static_cast<float>(about.uncertainty_decay());
  const auto rest_deviation = static_cast<float>(1.0 - about.uncertainty_decay());
  for (int64_t i = 0; i < size; ++i) {
    const float importance = std::fabs(weights[i] * gradient[i]);
    means[i] = keep * means[i] + rest * importance;
    deviations[i] = keep_deviation * deviations[i] + rest_deviation * std::fabs(importance - means[i]);
  }
}

}  // namespace millrace::optim
