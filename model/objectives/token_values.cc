#include "model/objectives/token_values.h"

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/layers/linear.h"

namespace millrace::model {

absl::StatusOr<TokenValues> TokenValues::Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                                int64_t columns, bool for_training) {
  if (network->score() < 0) return absl::InvalidArgumentError("a model without a scalar head has no values");
  TokenValues made(network, compute);
  MILLRACE_ASSIGN_OR_RETURN(made.memory_, network->NewMemory(tokens, columns, for_training));
  return made;
}

absl::Status TokenValues::Forward(const NetworkWeights& weights, const TokenMatrix& tokens, const Noise& noise,
                                  GroupHook need, absl::Span<float> values) {
  MILLRACE_RETURN_IF_ERROR(network_->CheckIds(tokens));
  weights_ = weights;
  tokens_ = tokens;
  noise_ = noise;
  MILLRACE_ASSIGN_OR_RETURN(outputs_, network_->Forward(*compute_, weights, tokens, noise, need, memory_.get()));
  const kernels::FlushDenormals flush;
  LinearForward(*compute_, Projection(), outputs_, tokens.tokens(),
                weights.base + network_->tensors()[network_->score()].offset, nullptr, values.data(), 1);
  return absl::OkStatus();
}

absl::Status TokenValues::Backward(absl::Span<const float> d_values, Trainable trainable, float* gradients,
                                   GroupHook final) {
  const int64_t offset = network_->tensors()[network_->score()].offset;
  const bool trained = trainable == nullptr || (*trainable)[static_cast<size_t>(network_->score())];
  {
    const kernels::FlushDenormals flush;
    LinearBackward(
        *compute_, Projection(), outputs_, tokens_.tokens(), weights_.base + offset, d_values.data(), 1,
        network_->NeedsOutputGradient(weights_, trainable) ? network_->OutputGradient(memory_.get()) : nullptr, false,
        trained ? gradients + offset : nullptr, nullptr);
  }
  return network_->Backward(*compute_, weights_, tokens_, noise_, trainable, gradients, final, memory_.get());
}

}  // namespace millrace::model
