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
// Logits are the product of that with the output embedding, which is the input embedding if they are tied; a scalar
// head has one row of its own instead. objectives/ compute them. Tensors carry Hugging Face's names and layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/philox.h"
#include "kernels/compute.h"
#include "kernels/product.h"
#include "model/adapters/adapter.h"
#include "model/adapters/linear_adapter.h"
#include "model/arena.h"
#include "model/families/head.h"
#include "model/layers/attention.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"
#include "model/layers/rope.h"
#include "model/tensor_list.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// Rows of token ids, [rows, columns]. Each is one sequence, or holds several one after another, which do not see each
// other and whose positions each count from 0: to a sequence it is as if it were alone, bit for bit.
struct TokenMatrix {
  const uint32_t* ids = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;  // ids from one row to the next
  // [rows, columns], laid out as the ids: the column at which the token's sequence begins. Null: each row is one.
  const uint32_t* starts = nullptr;

  int64_t tokens() const { return rows * columns; }
};

// Called with a tensor group's number. An error ends the pass and is returned by it.
using GroupHook = absl::FunctionRef<absl::Status(uint32_t group)>;
// For passes whose weights are there and whose gradients nobody waits for.
inline absl::Status IgnoreGroup(uint32_t) { return absl::OkStatus(); }

// Which tensors are trained, by their index in the model's list. Null: all.
using Trainable = const std::vector<bool>*;

// An adapter with its weights, laid out as its tensors.
struct ActiveAdapter {
  const Adapter* adapter = nullptr;
  const float* weights = nullptr;
};

// What a pass computes with: the decoder's weights, laid out as its tensors, and adapters, which are used one after
// another at each linear layer. Views.
struct DecoderWeights {
  DecoderWeights(const float* base) : base(base) {}  // NOLINT: without adapters the weights are all there is
  DecoderWeights(const float* base, absl::Span<const ActiveAdapter> adapters) : base(base), adapters(adapters) {}

  const float* base = nullptr;
  absl::Span<const ActiveAdapter> adapters;

  // Positions that virtual tokens take before the text.
  int64_t virtual_tokens() const {
    int64_t tokens = 0;
    for (const ActiveAdapter& active : adapters) tokens += active.adapter->virtual_tokens();
    return tokens;
  }
};

// Whether adapters can be used together: of those with virtual tokens or prompts there is one, of DoRA one at a layer,
// before others. INVALID_ARGUMENT says which two cannot.
absl::Status CheckStack(absl::Span<const Adapter* const> adapters);

// Where randomness of a pass comes from: dropout is off without it.
struct Noise {
  const Philox* key = nullptr;  // of (seed, phase, step, microbatch); null: none
};

class Decoder {
 public:
  // INVALID_ARGUMENT names the field that does not fit. Requires a spec with its defaults.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const v1::ModelSpec& spec, uint32_t vocab_size,
                                                         Head head = Head::kLanguage);

  const v1::ModelSpec& spec() const { return spec_; }
  uint32_t vocab_size() const { return vocab_size_; }
  const TensorList& tensors() const { return tensors_; }
  int64_t hidden_size() const { return hidden_size_; }
  kernels::Precision precision() const { return precision_; }
  // Groups of tensors: 0 the embeddings, 1 … layers, and the rest.
  uint32_t groups() const { return static_cast<uint32_t>(layers_.size()) + 2; }
  uint32_t last_group() const { return groups() - 1; }
  // [vocab_size, hidden_size]: the tensor that makes logits of outputs; its group is 0 if tied, else the last. -1 with
  // a scalar head.
  int output_embedding() const { return output_embedding_; }
  // [1, hidden_size]: the tensor of a scalar head, in the last group; else -1.
  int score() const { return score_; }
  int input_embedding() const { return input_embedding_; }
  // The linear layers, in the order of the forward pass, and their weights.
  absl::Span<const LinearSite> linear_sites() const { return sites_; }
  const LinearTensors& linear(const LinearSite& site) const { return TensorsOf(layers_[site.layer], site.module); }
  Linear linear_shape(const LinearSite& site) const { return Shape(site.inputs, site.outputs); }

  // Makes room for adapters with up to so many virtual tokens in the memories and caches that are made from now on.
  void ReserveVirtualTokens(int64_t tokens) { reserved_ = std::max(reserved_, tokens); }

  // What a pass keeps, for up to `tokens` tokens in sequences of up to `columns`.
  class Memory;
  // Keys and values of some sequences, for prediction token by token.
  class Cache;
  // Tokens that go behind those of one of a cache's sequences; at least one.
  struct Appended {
    int64_t sequence = 0;
    absl::Span<const uint32_t> ids;
  };
  struct Free {
    void operator()(Memory* memory) const;
    void operator()(Cache* cache) const;
  };
  using OwnedMemory = std::unique_ptr<Memory, Free>;
  using OwnedCache = std::unique_ptr<Cache, Free>;

  // `for_training`: everything that Backward needs; else one layer's worth.
  // RESOURCE_EXHAUSTED if there is not so much memory.
  absl::StatusOr<OwnedMemory> NewMemory(int64_t tokens, int64_t columns, bool for_training) const;

  // Returns the normalised outputs [tokens, hidden_size] in `memory`. Calls `need` with each group before its weights
  // are used. INVALID_ARGUMENT for tokens that do not fit, virtual ones included, and for starts that cannot be;
  // RESOURCE_EXHAUSTED if there is no memory for adapters that are new to `memory`. Requires ids below vocab_size and
  // adapters that go together (CheckStack).
  absl::StatusOr<const float*> Forward(const kernels::Compute& compute, const DecoderWeights& weights,
                                       const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                       Memory* memory) const;

  // INVALID_ARGUMENT for an id that is not below vocab_size.
  absl::Status CheckIds(const TokenMatrix& tokens) const;

  // Where the gradient of Forward's outputs is to be written before Backward, [tokens, hidden_size].
  float* OutputGradient(Memory* memory) const;

  // After Forward with the same arguments in memory for training: adds the gradients of the trainable tensors to
  // `gradients` (laid out as the weights), and calls `final` with each group once nothing more is added to it: the last
  // group first, all of them. What the objective adds to the output embedding must be there before. Nothing is computed
  // for tensors that are not trained, nor below the first one that is; the others' bits do not depend on that.
  // An adapter's tensors are numbered after the decoder's, and its gradients lie behind the decoder's. With one, which
  // is the only one, its tensors are trained and no linear layer's.
  absl::Status Backward(const kernels::Compute& compute, const DecoderWeights& weights, const TokenMatrix& tokens,
                        const Noise& noise, Trainable trainable, float* gradients, GroupHook final,
                        Memory* memory) const;
  // Whether Backward uses the gradient of the outputs: whether a tensor below the head's is trained.
  bool NeedsOutputGradient(const DecoderWeights& weights, Trainable trainable) const;

  // For one sequence as long as the context. RESOURCE_EXHAUSTED if there is not so much memory.
  absl::StatusOr<OwnedCache> NewCache() const { return NewCache(1, context_, context_); }
  // For `sequences` sequences of up to `columns` tokens, at most the context, of which up to `tokens` are appended
  // together. RESOURCE_EXHAUSTED if there is not so much memory.
  absl::StatusOr<OwnedCache> NewCache(int64_t sequences, int64_t columns, int64_t tokens) const;
  // Forgets all tokens, and gets ready for sequences with these weights' adapters, which must not change until the next
  // Begin. INVALID_ARGUMENT if the cache's sequences do not fit the context behind virtual tokens, or there is no room
  // for these; RESOURCE_EXHAUSTED if there is no memory for them.
  absl::Status Begin(const kernels::Compute& compute, const DecoderWeights& weights, Cache* cache) const;
  // Forgets a sequence's tokens.
  void ClearSequence(int64_t sequence, Cache* cache) const;
  // Makes sequence `to` hold the tokens of `from`.
  void CopySequence(int64_t from, int64_t to, Cache* cache) const;
  // Appends tokens to sequences, each of which occurs once at most, and returns their outputs [tokens, hidden_size],
  // one of `appended` after another: the same bits as Forward gives for the whole sequence, whatever goes on beside it.
  // Requires that sequences and tokens then fit the cache, and with adapters a Begin before the first.
  const float* Extend(const kernels::Compute& compute, const DecoderWeights& weights,
                      absl::Span<const Appended> appended, Cache* cache) const;
  // The same for sequence 0.
  const float* Extend(const kernels::Compute& compute, const DecoderWeights& weights, absl::Span<const uint32_t> ids,
                      Cache* cache) const {
    const Appended appended = {0, ids};
    return Extend(compute, weights, absl::MakeConstSpan(&appended, 1), cache);
  }

 private:
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
    const DecoderWeights& weights;
    const Noise& noise;
    Memory& memory;
    // DoRA's norms and the virtual tokens are those that the memory keeps.
    bool ready = false;
  };
  // What a memory keeps for an adapter.
  struct AdapterMemory;

  Decoder(const v1::ModelSpec& spec, uint32_t vocab_size, Head head);
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
  absl::Status TakeAdapters(const DecoderWeights& weights, Memory* memory) const;
  AttentionShape ShapeOf(const TokenMatrix& tokens, const Memory& memory) const;
  int64_t qkv_size() const { return (heads_ + 2 * kv_heads_) * head_size_; }
  int64_t kv_size() const { return kv_heads_ * head_size_; }

  Linear Shape(int64_t inputs, int64_t outputs) const { return {inputs, outputs, gpt2(), precision_}; }
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
  // The first tensor that is trained, or their number; an adapter's count as the ones where it enters the pass.
  int LowestTrained(const DecoderWeights& weights, Trainable trainable) const;

  const v1::ModelSpec spec_;
  const uint32_t vocab_size_;
  const int64_t hidden_size_, heads_, kv_heads_, head_size_, intermediate_size_, context_;
  const float epsilon_, dropout_;
  const kernels::Precision precision_;
  const NormKind norm_kind_;
  TensorList tensors_;
  int input_embedding_ = -1;
  int position_embedding_ = -1;
  int output_embedding_ = -1;
  int score_ = -1;
  NormTensors last_norm_;
  std::vector<Layer> layers_;
  std::vector<LinearSite> sites_;
  RopeTable rope_;  // empty for GPT-2
  int64_t reserved_ = 0;
};

}  // namespace millrace::model
