// Computes decoder transformers of the GPT-2, LLaMA, Mistral and Qwen2 families: from tokens to the normalised outputs
// of the last layer, and back.
//
//   GPT-2 (Radford et al. 2019)                      LLaMA (Touvron et al. 2023)
//   x = wte[token] + wpe[position]                   x = embed[token]
//   per layer:                                       per layer:
//     x += proj(attention(qkv(LayerNorm(x))))          x += o(attention(RoPE(q), RoPE(k), v of RMSNorm(x)))
//     x += proj(GELU(fc(LayerNorm(x))))                x += down(SwiGLU(gate, up of RMSNorm(x)))
//   LayerNorm(x)                                     RMSNorm(x)
//
// Mistral (Jiang et al. 2023) is LLaMA, its attention through a sliding window if wanted; Qwen2 (Yang et al. 2024) is
// that with biases on q, k and v.
//
// Tensors carry Hugging Face's names and layout.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/adapters/adapter.h"
#include "model/adapters/linear_adapter.h"
#include "model/arena.h"
#include "model/families/head.h"
#include "model/families/network.h"
#include "model/layers/attention.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/layers/rope.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// gpt2, llama, mistral or qwen2.
bool IsDecoder(absl::string_view family);

class Decoder : public Network {
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

  // Tensors of a layer, by index; -1: none.
  struct Layer {
    NormTensors attention_norm;
    LinearTensors query, key, value;  // one fused product in `query` for GPT-2, the others absent
    LinearTensors attention_output;
    NormTensors mlp_norm;
    LinearTensors gate, up, down;  // no gate for GPT-2
  };

  // What a layer keeps; the layers of a memory that is not for training share one.
  struct LayerMemory {
    float* input = nullptr;          // [tokens, hidden]
    float* normed = nullptr;         // [tokens, hidden]
    float* mean = nullptr;           // [tokens]
    float* rstd = nullptr;           // [tokens]
    float* qkv = nullptr;            // [tokens, (heads + 2 kv_heads) head_size]
    float* probabilities = nullptr;  // [rows, heads, columns, columns]
    float* attended = nullptr;       // [tokens, hidden]
    float* middle = nullptr;         // [tokens, hidden]: after attention's residual
    float* mlp_normed = nullptr;     // [tokens, hidden]
    float* mlp_mean = nullptr;       // [tokens]
    float* mlp_rstd = nullptr;       // [tokens]
    float* gate = nullptr;           // [tokens, intermediate]; SwiGLU only
    float* up = nullptr;             // [tokens, intermediate]: GELU's input
    float* activated = nullptr;      // [tokens, intermediate]
  };

  // What a pass through the layers computes with.
  struct Pass {
    const kernels::Compute& compute;
    const NetworkWeights& weights;
    const Noise& noise;
    Memory& memory;
    // DoRA's norms and the virtual tokens are those that the memory keeps.
    bool ready = false;
  };
  // What a memory keeps for an adapter.
  struct AdapterMemory;

  Decoder(const v1::ModelSpec& spec, uint32_t vocab_size, Head head);
  absl::StatusOr<std::unique_ptr<Memory>> MakeMemory(int64_t tokens, int64_t columns, bool for_training) const;
  void AddTensors(Head head);
  void AddSites();
  LinearTensors AddLinear(const std::string& name, int64_t inputs, int64_t outputs, uint32_t group, bool bias,
                          bool residual);
  NormTensors AddNorm(const std::string& name, uint32_t group);
  bool gpt2() const { return spec_.family() == "gpt2"; }
  static const LinearTensors& TensorsOf(const Layer& layer, Module module);
  // Fills memory->positions and memory->sequences: positions count from `first` on. INVALID_ARGUMENT for starts that
  // cannot be.
  absl::Status TakeSequences(const TokenMatrix& tokens, int64_t first, Memory* memory) const;
  // Makes what the weights' adapters need in the memory.
  absl::Status TakeAdapters(const NetworkWeights& weights, Memory* memory) const;
  AttentionShape ShapeOf(const TokenMatrix& tokens, const Memory& memory) const;
  int64_t qkv_size() const { return (heads_ + 2 * kv_heads_) * head_size_; }
  int64_t kv_size() const { return kv_heads_ * head_size_; }

  Linear LinearOf(const LinearTensors& tensors) const;
  LinearAdapterPass AdapterAt(const Pass& pass, size_t adapter, size_t index, Module module) const;
  float* VirtualProbabilities(const Memory& memory, size_t layer) const;
  // Makes the virtual tokens, and says how many positions they take.
  int64_t BeginPass(const Pass& pass) const;
  void EmbedVirtualTokens(const Pass& pass, float* x) const;
  void KeepKeys(const float* qkv, int64_t count, float* keys, float* values) const;
  Dropout DropoutAt(const Noise& noise, size_t layer, uint64_t place) const;
  // A linear layer of the decoder's layer `index` with its adapters: y = linear(x), rows of y `y_stride` apart.
  void ApplyLinear(const Pass& pass, size_t index, Module module, const float* x, int64_t rows, float* y,
                   int64_t y_stride) const;
  void LinearGradients(const Pass& pass, size_t index, Module module, Trainable trainable, const float* x, int64_t rows,
                       float* dy, int64_t dy_stride, float* dx, bool accumulate, float* gradients) const;
  // normed -> queries, keys and values, not turned yet.
  void Project(const Pass& pass, size_t index, const float* normed, int64_t rows, float* qkv) const;
  // memory.mlp_normed -> output, keeping gate, up and activated.
  void ForwardMlp(const Pass& pass, size_t index, int64_t rows, const LayerMemory& memory, float* output) const;
  // What is before the text in a layer: rows of its own keys and values, or an adapter's.
  Past PastOf(const Pass& pass, size_t index, const float* qkv) const;
  void ForwardLayer(const Pass& pass, size_t index, const AttentionShape& shape, bool keep, const LayerMemory& memory,
                    float* output) const;
  void BackwardLayer(const Pass& pass, size_t index, const AttentionShape& shape, Trainable trainable,
                     const LayerMemory& kept, float* gradients) const;
  // Attention to an adapter's prompt, whose outputs are added to `out` [tokens, hidden_size].
  void AttendToPrompt(const Pass& pass, size_t index, const AttentionShape& shape, const float* q, int64_t tokens,
                      float* out) const;
  // dout is that of `out`; adds to the gradient of the queries.
  void PromptGradients(const Pass& pass, size_t index, const AttentionShape& shape, const float* q, int64_t tokens,
                       const float* dout, float* dq, float* gradients) const;
  // Embedded tokens in memory.layers[0].input -> outputs. `keep_keys` is called in each layer with queries, keys and
  // values, and says what the queries look at.
  const float* ExtendLayers(
      const Pass& pass, int64_t count, const Cache& cache, bool has_past,
      absl::FunctionRef<absl::Span<const Continuation>(size_t layer, const float* qkv)> keep_keys) const;
  int LowestTrained(const NetworkWeights& weights, Trainable trainable) const override;

  const int64_t heads_, kv_heads_, head_size_, intermediate_size_, context_;
  const float epsilon_, dropout_;
  const NormKind norm_kind_;
  int position_embedding_ = -1;
  NormTensors last_norm_;
  std::vector<Layer> layers_;
  RopeTable rope_;  // empty for GPT-2
};

}  // namespace millrace::model
