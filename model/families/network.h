// Says what every family of models offers to objectives, generation and serving: from tokens to normalised outputs a
// token, and back.
//
// Logits are the product of outputs with the output embedding, which is the input embedding if they are tied; a scalar
// head has one row of its own instead, and an encoder a head of more layers. objectives/ compute them.
//
// Decoders and their like see a token and those before it, so that they continue text token by token, with caches. An
// encoder's tokens see those behind them too: it has no caches, which extends() says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
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
#include "model/families/head.h"
#include "model/layers/attention.h"
#include "model/layers/linear.h"
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
  // [rows, columns], laid out as the ids: whether the token is of the first or the second piece of text, 0 or 1. Null:
  // all of the first. Encoders alone look at it.
  const uint32_t* types = nullptr;

  int64_t tokens() const { return rows * columns; }
};

// Those of packed rows, in order; none without starts. INVALID_ARGUMENT for starts that cannot be.
absl::StatusOr<std::vector<Sequence>> SequencesOf(const TokenMatrix& tokens);

// Called with a tensor group's number. An error ends the pass and is returned by it.
using GroupHook = absl::FunctionRef<absl::Status(uint32_t group)>;
// For passes whose weights are there and whose gradients nobody waits for.
inline absl::Status IgnoreGroup(uint32_t) { return absl::OkStatus(); }

// An adapter with its weights, laid out as its tensors.
struct ActiveAdapter {
  const Adapter* adapter = nullptr;
  const float* weights = nullptr;
};

// What a pass computes with: the network's weights, laid out as its tensors, and adapters, which are used one after
// another at each linear layer. Views.
struct NetworkWeights {
  NetworkWeights(const float* base) : base(base) {}  // NOLINT: without adapters the weights are all there is
  NetworkWeights(const float* base, absl::Span<const ActiveAdapter> adapters) : base(base), adapters(adapters) {}

  const float* base = nullptr;
  absl::Span<const ActiveAdapter> adapters;

  // Positions that virtual tokens take before the text.
  int64_t virtual_tokens() const {
    int64_t tokens = 0;
    for (const ActiveAdapter& active : adapters) tokens += active.adapter->virtual_tokens();
    return tokens;
  }
};

// Where randomness of a pass comes from: dropout is off without it.
struct Noise {
  const Philox* key = nullptr;  // of (seed, phase, step, microbatch); null: none
};

// Constant but for ReserveVirtualTokens. Memories and caches are used by one thread at a time, with the network that
// made them.
class Network {
 public:
  virtual ~Network() = default;
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const v1::ModelSpec& spec() const { return spec_; }
  uint32_t vocab_size() const { return vocab_size_; }
  const TensorList& tensors() const { return tensors_; }
  int64_t hidden_size() const { return hidden_size_; }
  kernels::Precision precision() const { return precision_; }
  // Groups of tensors: 0 the embeddings, 1 … layers, and the rest.
  uint32_t groups() const { return spec_.layers() + 2; }
  uint32_t last_group() const { return groups() - 1; }
  // [vocab_size, hidden_size]: the tensor that makes logits of outputs; its group is 0 if tied, else the last. -1 with
  // a scalar head and for encoders.
  int output_embedding() const { return output_embedding_; }
  // [1, hidden_size]: the tensor of a scalar head, in the last group; else -1.
  int score() const { return score_; }
  // An encoder's head, which then has neither of these; null for others.
  const MaskedHead* masked_head() const { return masked_head_.has_value() ? &*masked_head_ : nullptr; }
  // Whether it continues text: all below that takes a cache is for networks that do.
  bool extends() const { return !masked_head_.has_value(); }
  // INVALID_ARGUMENT says so if it does not.
  absl::Status CheckExtends() const;
  int input_embedding() const { return input_embedding_; }
  // The linear layers on which adapters can be put, in the order of the forward pass; none if the family has none.
  absl::Span<const LinearSite> linear_sites() const { return sites_; }
  Linear linear_shape(const LinearSite& site) const {
    return {site.inputs, site.outputs, tensors_[site.tensors.weight].rows_are_inputs, precision_};
  }

  // Makes room for adapters with up to so many virtual tokens in the memories and caches that are made from now on.
  void ReserveVirtualTokens(int64_t tokens) { reserved_ = std::max(reserved_, tokens); }

  // What a pass keeps, for up to `tokens` tokens in sequences of up to `columns`.
  class Memory {
   public:
    virtual ~Memory() = default;
  };
  // What is known of the tokens of some sequences, for prediction token by token.
  class Cache {
   public:
    virtual ~Cache() = default;
  };
  using OwnedMemory = std::unique_ptr<Memory>;
  using OwnedCache = std::unique_ptr<Cache>;
  // Tokens that go behind those of one of a cache's sequences; at least one.
  struct Appended {
    int64_t sequence = 0;
    absl::Span<const uint32_t> ids;
  };

  // `for_training`: everything that Backward needs; else one layer's worth.
  // RESOURCE_EXHAUSTED if there is not so much memory.
  virtual absl::StatusOr<OwnedMemory> NewMemory(int64_t tokens, int64_t columns, bool for_training) const = 0;

  // Returns the normalised outputs [tokens, hidden_size] in `memory`. Calls `need` with each group before its weights
  // are used. INVALID_ARGUMENT for tokens that do not fit, virtual ones included, and for starts that cannot be;
  // RESOURCE_EXHAUSTED if there is no memory for adapters that are new to `memory`. Requires ids below vocab_size and
  // adapters that go together (CheckStack).
  virtual absl::StatusOr<const float*> Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                               const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                               Memory* memory) const = 0;

  // INVALID_ARGUMENT for an id that is not below vocab_size.
  absl::Status CheckIds(const TokenMatrix& tokens) const;

  // Where the gradient of Forward's outputs is to be written before Backward, [tokens, hidden_size].
  virtual float* OutputGradient(Memory* memory) const = 0;

  // After Forward with the same arguments in memory for training: adds the gradients of the trainable tensors to
  // `gradients` (laid out as the weights), and calls `final` with each group once nothing more is added to it: the last
  // group first, all of them. What the objective adds to the output embedding must be there before. Nothing is computed
  // for tensors that are not trained, nor below the first one that is; the others' bits do not depend on that.
  // An adapter's tensors are numbered after the network's, and its gradients lie behind the network's. With one, which
  // is the only one, its tensors are trained and no linear layer's.
  virtual absl::Status Backward(const kernels::Compute& compute, const NetworkWeights& weights,
                                const TokenMatrix& tokens, const Noise& noise, Trainable trainable, float* gradients,
                                GroupHook final, Memory* memory) const = 0;
  // Whether Backward uses the gradient of the outputs: whether a tensor below the head's is trained.
  bool NeedsOutputGradient(const NetworkWeights& weights, Trainable trainable) const;

  // For `sequences` sequences of up to `columns` tokens, at most the context, of which up to `tokens` are appended
  // together. RESOURCE_EXHAUSTED if there is not so much memory; INVALID_ARGUMENT if the network does not extend.
  virtual absl::StatusOr<OwnedCache> NewCache(int64_t sequences, int64_t columns, int64_t tokens) const = 0;
  // For one sequence as long as the context.
  absl::StatusOr<OwnedCache> NewCache() const { return NewCache(1, spec_.context(), spec_.context()); }
  // What a cache takes for each sequence as long as the context.
  virtual uint64_t SequenceBytes() const = 0;
  // Forgets all tokens, and gets ready for sequences with these weights' adapters, which must not change until the next
  // Begin. INVALID_ARGUMENT if the cache's sequences do not fit the context behind virtual tokens, or there is no room
  // for these; RESOURCE_EXHAUSTED if there is no memory for them.
  virtual absl::Status Begin(const kernels::Compute& compute, const NetworkWeights& weights, Cache* cache) const = 0;
  // Forgets a sequence's tokens.
  virtual void ClearSequence(int64_t sequence, Cache* cache) const = 0;
  // Makes sequence `to` hold the tokens of `from`.
  virtual void CopySequence(int64_t from, int64_t to, Cache* cache) const = 0;
  // Appends tokens to sequences, each of which occurs once at most, and returns their outputs [tokens, hidden_size],
  // one of `appended` after another: the same bits as Forward gives for the whole sequence, whatever goes on beside it.
  // Requires that sequences and tokens then fit the cache, and with adapters a Begin before the first.
  virtual const float* Extend(const kernels::Compute& compute, const NetworkWeights& weights,
                              absl::Span<const Appended> appended, Cache* cache) const = 0;
  // The same for sequence 0.
  const float* Extend(const kernels::Compute& compute, const NetworkWeights& weights, absl::Span<const uint32_t> ids,
                      Cache* cache) const {
    const Appended appended = {0, ids};
    return Extend(compute, weights, absl::MakeConstSpan(&appended, 1), cache);
  }

 protected:
  Network(const v1::ModelSpec& spec, uint32_t vocab_size);

  // Adds [rows, hidden_size] with normal deviates.
  int AddTable(const std::string& name, int64_t rows, uint32_t group, double std);
  // What makes something of the outputs: "score.weight", the input embedding or "lm_head.weight".
  void AddHead(Head head);
  // The first tensor that is trained, or their number; an adapter's count as the ones where it enters the pass.
  virtual int LowestTrained(const NetworkWeights& weights, Trainable trainable) const;
  // INVALID_ARGUMENT for tokens that are more than `capacity` or in rows of more than `columns`.
  absl::Status CheckRoom(const NetworkWeights& weights, const TokenMatrix& tokens, int64_t capacity,
                         int64_t columns) const;

  const v1::ModelSpec spec_;
  const uint32_t vocab_size_;
  const int64_t hidden_size_;
  const kernels::Precision precision_;
  TensorList tensors_;
  int input_embedding_ = -1;
  int output_embedding_ = -1;
  int score_ = -1;
  std::optional<MaskedHead> masked_head_;
  std::vector<LinearSite> sites_;
  int64_t reserved_ = 0;  // virtual tokens
};

// INVALID_ARGUMENT names the field that does not fit. Requires a spec with its defaults.
absl::StatusOr<std::unique_ptr<Network>> CreateNetwork(const v1::ModelSpec& spec, uint32_t vocab_size,
                                                       Head head = Head::kLanguage);

// Whether adapters can be used together: of those with virtual tokens or prompts there is one, of DoRA one at a layer,
// before others. INVALID_ARGUMENT says which two cannot.
absl::Status CheckStack(absl::Span<const Adapter* const> adapters);

}  // namespace millrace::model
