#include "model/objectives/causal_lm.h"

#include <algorithm>

#include "absl/types/span.h"
#include "common/status.h"

namespace millrace::model {
namespace {

double SumOfLosses(const std::vector<float>& log_probabilities) {
  double sum = 0;
  for (const float log_probability : log_probabilities) sum -= static_cast<double>(log_probability);
  return sum;
}

}  // namespace

absl::StatusOr<CausalLm> CausalLm::Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                          int64_t columns, bool for_training) {
  MILLRACE_ASSIGN_OR_RETURN(TokenScores scores, TokenScores::Create(network, compute, tokens, columns, for_training));
  return CausalLm(std::move(scores));
}

absl::StatusOr<double> CausalLm::Loss(const NetworkWeights& weights, const Batch& batch, GroupHook need,
                                      float* log_probabilities) {
  MILLRACE_RETURN_IF_ERROR(scores_.Forward(weights, batch, {}, need));
  log_probabilities_.resize(static_cast<size_t>(scores_.predictions()));
  scores_.Score(1.0f, absl::MakeSpan(log_probabilities_), {});
  if (log_probabilities != nullptr) {
    std::copy(log_probabilities_.begin(), log_probabilities_.end(), log_probabilities);
  }
  return SumOfLosses(log_probabilities_);
}

absl::StatusOr<double> CausalLm::Gradients(const NetworkWeights& weights, const Batch& batch, const Noise& noise,
                                           float scale, GroupHook need, float* gradients, GroupHook final,
                                           Trainable trainable) {
  MILLRACE_RETURN_IF_ERROR(scores_.Forward(weights, batch, noise, need));
  log_probabilities_.resize(static_cast<size_t>(scores_.predictions()));
  derivatives_.assign(log_probabilities_.size(), -scale);
  MILLRACE_RETURN_IF_ERROR(
      scores_.Backward({derivatives_, {}, 1.0f}, trainable, gradients, final, absl::MakeSpan(log_probabilities_)));
  return SumOfLosses(log_probabilities_);
}

}  // namespace millrace::model
