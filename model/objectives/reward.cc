#include "model/objectives/reward.h"

#include <algorithm>

#include "kernels/functions.h"

namespace millrace::model {
namespace {

using kernels::LogSigmoidInF64;
using kernels::SigmoidInF64;

void Count(double difference, RewardStatistics* statistics) {
  const double right = difference > 0 ? 1.0 : difference < 0 ? 0.0 : 0.5;
  const double confidence = SigmoidInF64(difference < 0 ? -difference : difference);
  const auto bin = static_cast<size_t>((confidence - 0.5) * (2 * RewardStatistics::kBins));
  RewardStatistics::Bin& of_confidence = statistics->calibration[std::min(bin, RewardStatistics::kBins - 1)];
  ++statistics->comparisons;
  statistics->right += right;
  statistics->margin += difference;
  ++of_confidence.count;
  of_confidence.confidence += confidence;
  of_confidence.right += right;
}

}  // namespace

double RewardLoss(absl::Span<const RewardPair> pairs, double centring, double scale, absl::Span<double> d_chosen,
                  absl::Span<double> d_rejected, RewardStatistics* statistics) {
  double sum = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const RewardPair& pair = pairs[i];
    const double difference = pair.chosen - pair.rejected, total = pair.chosen + pair.rejected;
    double loss = centring * total * total, slope = 0;
    if (pair.tie) {
      loss -= 0.5 * (LogSigmoidInF64(difference) + LogSigmoidInF64(-difference));
      slope = SigmoidInF64(difference) - 0.5;
      ++statistics->ties;
    } else {
      loss -= LogSigmoidInF64(difference - pair.margin);
      slope = -SigmoidInF64(pair.margin - difference);
      Count(difference, statistics);
    }
    const double of_total = 2 * centring * total;
    d_chosen[i] = scale * (of_total + slope);
    d_rejected[i] = scale * (of_total - slope);
    sum += loss;
    statistics->loss += loss;
    statistics->rewards += total;
  }
  return sum;
}

}  // namespace millrace::model
