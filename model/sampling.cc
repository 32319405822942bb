#include "model/sampling.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/functions.h"

namespace millrace::model {
namespace {

constexpr uint64_t kSamplingPurpose = 0x53414D504C45;  // "SAMPLE"

}  // namespace

uint32_t Sample(absl::Span<const float> logits, const SamplingOptions& options, float uniform) {
  if (options.temperature == 0.0 || options.top_k == 1) {
    return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  const auto before = [&logits](uint32_t a, uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
  if (options.top_p < 1.0 || kept < order.size()) {
    std::partial_sort(order.begin(),
                      order.begin() + static_cast<std::ptrdiff_t>(options.top_p < 1.0 ? order.size() : kept),
                      order.end(), before);
  }
  const auto largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  std::vector<double> weights(kept);
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    const double exponent = (static_cast<double>(logits[order[i]]) - largest) / options.temperature;
    weights[i] = exponent < -700 ? 0.0 : kernels::ExpInF64(exponent);
    sum += weights[i];
  }
  if (options.top_p < 1.0) {
    double reached = 0;
    size_t count = 0;
    while (count < kept && reached < options.top_p * sum) reached += weights[count++];
    kept = std::max<size_t>(count, 1);
    sum = reached;
  }
  double left = static_cast<double>(uniform) * sum;
  for (size_t i = 0; i < kept; ++i) {
    if (left < weights[i]) return order[i];
    left -= weights[i];
  }
  // Rounding: the last one that can be drawn at all.
  while (kept > 1 && weights[kept - 1] == 0) --kept;
  return order[kept - 1];
}

Philox SamplingKey(uint64_t seed, uint64_t sample) {
  const Philox key = Philox(seed).Derive(kSamplingPurpose);
  return sample == 0 ? key : key.Derive(sample);
}

}  // namespace millrace::model
