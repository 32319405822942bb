// Computes language models that look back through states of fixed size instead of attention, as baselines: the family
// lstm (layers/lstm.h) and the family cnn (layers/gated_convolution.h).
//
//   x = dropout(embed[token])
//   per layer: x = layer(x)
//   LayerNorm(x)
//
// They have no positions: a sequence begins with zero states. Names are PyTorch's for nn.LSTM, else our own; Hugging
// Face has no classes for them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/families/head.h"
#include "model/families/network.h"
#include "model/layers/causal_layer.h"
#include "model/layers/embedding.h"
#include "model/layers/norm.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// lstm or cnn.
bool IsCausalStack(absl::string_view family);

class CausalStack : public Network {
 public:
  // INVALID_ARGUMENT names the field that does not fit. Requires a spec of such a family with its defaults, and sizes
  // that CreateNetwork has checked.
  static absl::StatusOr<std::unique_ptr<Network>> Create(const v1::ModelSpec& spec, uint32_t vocab_size, Head head);

  absl::StatusOr<OwnedMemory> NewMemory(int64_t tokens, int64_t columns, bool for_training) const override;
  absl::StatusOr<const float*> Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                       const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                       Network::Memory* memory) const override;
  float* OutputGradient(Network::Memory* memory) const override;
  absl::Status Backward(const kernels::Compute& compute, const NetworkWeights& weights, const TokenMatrix& tokens,
                        const Noise& noise, Trainable trainable, float* gradients, GroupHook final,
                        Network::Memory* memory) const override;
  absl::StatusOr<OwnedCache> NewCache(int64_t sequences, int64_t columns, int64_t tokens) const override;
  uint64_t SequenceBytes() const override;
  absl::Status Begin(const kernels::Compute& compute, const NetworkWeights& weights,
                     Network::Cache* cache) const override;
  void ClearSequence(int64_t sequence, Network::Cache* cache) const override;
  void CopySequence(int64_t from, int64_t to, Network::Cache* cache) const override;
  const float* Extend(const kernels::Compute& compute, const NetworkWeights& weights,
                      absl::Span<const Appended> appended, Network::Cache* cache) const override;

 private:
  class Memory;
  class Cache;

  CausalStack(const v1::ModelSpec& spec, uint32_t vocab_size, Head head);
  absl::StatusOr<std::unique_ptr<Memory>> MakeMemory(int64_t tokens, int64_t columns, bool for_training) const;
  // Puts tokens of sequences, [first, first + length) of all, in the order of time.
  void TakeOrder(std::vector<Sequence> sequences, Memory* memory) const;
  // The ids of memory->ids, which are in the order of time.
  Lookup LookupOf(const Memory& memory) const;
  Dropout DropoutAt(const Noise& noise, size_t site) const;
  CausalPass PassOf(const kernels::Compute& compute, const NetworkWeights& weights, const Noise& noise, size_t layer,
                    const Memory& memory) const;
  // The tokens of memory->ids -> outputs in their own order. `states`: by layer, those of the sequences; none: zeros.
  absl::StatusOr<const float*> Run(const kernels::Compute& compute, const NetworkWeights& weights, const Noise& noise,
                                   GroupHook need, absl::Span<float* const> states, Memory* memory) const;

  const float epsilon_, dropout_;
  NormTensors last_norm_;
  std::vector<std::unique_ptr<CausalLayer>> layers_;
};

}  // namespace millrace::model
