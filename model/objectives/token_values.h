// Values tokens by a network with a scalar head, and adds the gradients of whatever is computed of the values: what
// reward models (the value of a response's last token) and value functions (of every token) have in common.
//
//   value of token t = w · h_t,   h: the network's outputs, w: score.weight
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/families/network.h"

namespace millrace::model {

// Holds the memory of its passes; one thread at a time.
class TokenValues {
 public:
  // For up to `tokens` tokens in rows of up to `columns`. Both outlive this. INVALID_ARGUMENT for a network whose head
  // is not scalar; RESOURCE_EXHAUSTED if there is not so much memory.
  static absl::StatusOr<TokenValues> Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                            int64_t columns, bool for_training);

  // Fills `values` [tokens.rows, tokens.columns]. What the arguments point to stays as it is until Backward.
  // INVALID_ARGUMENT for ids beyond the vocabulary and tokens that do not fit.
  absl::Status Forward(const NetworkWeights& weights, const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                       absl::Span<float> values);

  // After Forward, in memory for training: `d_values` [tokens.rows, tokens.columns] are a loss's derivatives by the
  // values. Adds its gradients to `gradients`, laid out as the weights, and calls `final` as Network::Backward does.
  absl::Status Backward(absl::Span<const float> d_values, Trainable trainable, float* gradients, GroupHook final);

 private:
  TokenValues(const Network* network, const kernels::Compute* compute) : network_(network), compute_(compute) {}

  Linear Projection() const { return {network_->hidden_size(), 1, false, network_->precision()}; }

  const Network* const network_;
  const kernels::Compute* const compute_;
  Network::OwnedMemory memory_;
  // Of the last Forward.
  NetworkWeights weights_ = nullptr;
  TokenMatrix tokens_;
  Noise noise_;
  const float* outputs_ = nullptr;  // [tokens, hidden_size]
};

}  // namespace millrace::model
