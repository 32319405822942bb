// Computes encoder transformers of the family bert (Devlin et al. 2019): from tokens to the outputs of the last layer,
// and back.
//
//   x = dropout(LayerNorm(word[token] + position[position] + token_type[type]))
//   per layer:
//     x = LayerNorm(x + dropout(dense(attention(q(x), k(x), v(x)))))
//     x = LayerNorm(x + dropout(down(GELU(up(x)))))
//
// Attention is not causal: a token sees all of its sequence. What fills a row up behind a sequence is a sequence of its
// own (TokenMatrix.starts), so that nobody sees it. All linear layers have biases; GELU is the one with erf.
//
// Tensors carry the names and layout of Hugging Face's BertForPreTraining; the head's are described in head.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/families/head.h"
#include "model/families/network.h"
#include "model/layers/attention.h"
#include "model/layers/embedding.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// bert.
bool IsEncoder(absl::string_view family);

class Encoder : public Network {
 public:
  // INVALID_ARGUMENT names the field that does not fit. Requires a spec of such a family with its defaults, and sizes
  // that CreateNetwork has checked.
  static absl::StatusOr<std::unique_ptr<Network>> Create(const v1::ModelSpec& spec, uint32_t vocab_size, Head head);

  absl::StatusOr<OwnedMemory> NewMemory(int64_t tokens, int64_t columns, bool for_training) const override;
  // INVALID_ARGUMENT for types other than 0 and 1, too.
  absl::StatusOr<const float*> Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                       const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                       Network::Memory* memory) const override;
  float* OutputGradient(Network::Memory* memory) const override;
  absl::Status Backward(const kernels::Compute& compute, const NetworkWeights& weights, const TokenMatrix& tokens,
                        const Noise& noise, Trainable trainable, float* gradients, GroupHook final,
                        Network::Memory* memory) const override;

  // There is none, so that what takes one is never called.
  absl::StatusOr<OwnedCache> NewCache(int64_t sequences, int64_t columns, int64_t tokens) const override;
  uint64_t SequenceBytes() const override { return 0; }
  absl::Status Begin(const kernels::Compute& compute, const NetworkWeights& weights,
                     Network::Cache* cache) const override;
  void ClearSequence(int64_t sequence, Network::Cache* cache) const override;
  void CopySequence(int64_t from, int64_t to, Network::Cache* cache) const override;
  const float* Extend(const kernels::Compute& compute, const NetworkWeights& weights,
                      absl::Span<const Appended> appended, Network::Cache* cache) const override;

 private:
  class Memory;

  // Tensors of a layer, by index.
  struct Layer {
    LinearTensors query, key, value, attention_output;
    NormTensors attention_norm;
    LinearTensors up, down;
    NormTensors output_norm;
  };

  // What a norm keeps.
  struct NormMemory {
    float* input = nullptr;  // [tokens, hidden]
    float* mean = nullptr;   // [tokens]
    float* rstd = nullptr;   // [tokens]
  };
  // What a layer keeps; the layers of a memory that is not for training share one.
  struct LayerMemory {
    float* qkv = nullptr;            // [tokens, 3 hidden]
    float* probabilities = nullptr;  // [rows, heads, columns, columns]
    float* attended = nullptr;       // [tokens, hidden]
    NormMemory attention_norm;
    float* middle = nullptr;     // [tokens, hidden]: after the norm behind attention
    float* up = nullptr;         // [tokens, intermediate]: GELU's input
    float* activated = nullptr;  // [tokens, intermediate]
    NormMemory output_norm;
  };

  // What a pass through the layers computes with.
  struct Pass {
    const kernels::Compute& compute;
    const float* weights;
    const Noise& noise;
    const Memory& memory;
    const AttentionShape& shape;
  };

  Encoder(const v1::ModelSpec& spec, uint32_t vocab_size);
  LinearTensors AddLinear(const std::string& name, int64_t inputs, int64_t outputs, uint32_t group);
  NormTensors AddNorm(const std::string& name, uint32_t group);
  void AddHead();

  Linear LinearOf(const LinearTensors& tensors) const;
  Dropout DropoutAt(const Noise& noise, size_t layer, uint64_t place) const;
  AttentionShape ShapeOf(const TokenMatrix& tokens, const Memory& memory) const;
  // Of ids and positions.
  Lookup WordsOf(const TokenMatrix& tokens, const Memory& memory) const;
  // Of types.
  Lookup TypesOf(const TokenMatrix& tokens, const Memory& memory) const;
  absl::Status TakeSequences(const TokenMatrix& tokens, Memory* memory) const;
  void ApplyLinear(const Pass& pass, const LinearTensors& tensors, const float* x, float* y, int64_t y_stride) const;
  void ApplyNorm(const Pass& pass, const NormTensors& tensors, const NormMemory& memory, float* y) const;
  void ForwardLayer(const Pass& pass, size_t index, const float* x, const LayerMemory& kept, float* y) const;
  void BackwardLayer(const Pass& pass, size_t index, Trainable trainable, int lowest, float* gradients) const;

  const int64_t heads_, head_size_, intermediate_size_;
  const float epsilon_, dropout_;
  int position_embedding_ = -1, type_embedding_ = -1;
  NormTensors embedding_norm_;
  std::vector<Layer> layers_;
};

}  // namespace millrace::model
