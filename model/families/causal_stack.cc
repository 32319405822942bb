#include "model/families/causal_stack.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/arena.h"
#include "model/layers/gated_convolution.h"
#include "model/layers/lstm.h"

namespace millrace::model {

// All rows are in the order of time unless said otherwise.
class CausalStack::Memory : public Network::Memory {
 public:
  Arena arena;
  bool for_training = false;
  int64_t capacity = 0;  // tokens
  int64_t max_columns = 0;
  // Of the pass.
  TimeOrder order;
  std::vector<int64_t> tokens;   // by row: the token's place in its own order
  std::vector<int64_t> ordered;  // by place in the order of time: the sequence's number before
  std::vector<uint32_t> ids;     // by row
  std::vector<float*> inputs;    // [tokens, hidden]: of each layer and of the last norm; two if not for training
  std::vector<float*> kept;      // [tokens, kept_size]: by layer; one if not for training
  float* scratch = nullptr;      // [tokens, scratch_size]
  float* last_mean = nullptr;    // [tokens]
  float* last_rstd = nullptr;    // [tokens]
  float* normed = nullptr;       // [tokens, hidden]: the last norm's outputs
  float* outputs = nullptr;      // [tokens, hidden]: in their own order
  // For training: gradients of …
  float* d_outputs = nullptr;  // [tokens, hidden]: in their own order
  float* d_normed = nullptr;   // [tokens, hidden]
  float* d_x = nullptr;        // [tokens, hidden]
};

class CausalStack::Cache : public Network::Cache {
 public:
  std::unique_ptr<Memory> memory;
  Arena arena;
  int64_t sequences = 0;
  std::vector<float*> states;   // by layer, [sequences, state_size]
  std::vector<float*> running;  // by layer, [sequences, state_size]: of those that are extended
};

bool IsCausalStack(absl::string_view family) { return family == "lstm" || family == "cnn"; }

absl::StatusOr<std::unique_ptr<Network>> CausalStack::Create(const v1::ModelSpec& spec, uint32_t vocab_size,
                                                             Head head) {
  if (spec.family() == "cnn" && (spec.kernel_size() == 0 || spec.kernel_size() > 64)) {
    return absl::InvalidArgumentError("model: kernel_size must be between 1 and 64");
  }
  return std::unique_ptr<Network>(new CausalStack(spec, vocab_size, head));
}

CausalStack::CausalStack(const v1::ModelSpec& spec, uint32_t vocab_size, Head head)
    : Network(spec, vocab_size),
      epsilon_(static_cast<float>(spec.norm_epsilon())),
      dropout_(static_cast<float>(spec.dropout())) {
  input_embedding_ = AddTable("embed_tokens.weight", vocab_size, 0, spec.init_std());
  for (uint32_t i = 0; i < spec.layers(); ++i) {
    if (spec.family() == "lstm") {
      layers_.push_back(std::make_unique<LstmLayer>(hidden_size_, precision_, "lstm.", i, &tensors_));
    } else {
      layers_.push_back(std::make_unique<GatedConvolution>(hidden_size_, spec.kernel_size(), epsilon_, precision_,
                                                           absl::StrCat("layers.", i, "."), i + 1, &tensors_));
    }
  }
  TensorSpec norm;
  norm.name = "norm.weight";
  norm.shape = {hidden_size_};
  norm.group = last_group();
  norm.start = Start::kOnes;
  last_norm_.gain = tensors_.Add(norm);
  norm.name = "norm.bias";
  norm.start = Start::kZeros;
  last_norm_.bias = tensors_.Add(norm);
  AddHead(head);
}

absl::StatusOr<std::unique_ptr<CausalStack::Memory>> CausalStack::MakeMemory(int64_t tokens, int64_t columns,
                                                                             bool for_training) const {
  auto memory = std::make_unique<Memory>();
  memory->for_training = for_training;
  memory->capacity = tokens;
  memory->max_columns = columns;
  const CausalLayer& layer = *layers_[0];  // as the others
  const auto lay_out = [&](Arena* arena) {
    const int64_t hidden = tokens * hidden_size_;
    memory->inputs.assign(for_training ? layers_.size() + 1 : 2, nullptr);
    for (float*& input : memory->inputs) input = arena->Take(hidden);
    memory->kept.assign(for_training ? layers_.size() : 1, nullptr);
    for (float*& kept : memory->kept) kept = arena->Take(tokens * layer.kept_size());
    memory->scratch = arena->Take(tokens * layer.scratch_size(for_training));
    memory->last_mean = arena->Take(tokens);
    memory->last_rstd = arena->Take(tokens);
    memory->normed = arena->Take(hidden);
    memory->outputs = arena->Take(hidden);
    if (!for_training) return;
    memory->d_outputs = arena->Take(hidden);
    memory->d_normed = arena->Take(hidden);
    memory->d_x = arena->Take(hidden);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(memory->arena, Arena::Create(measure.taken()));
  lay_out(&memory->arena);
  return memory;
}

absl::StatusOr<Network::OwnedMemory> CausalStack::NewMemory(int64_t tokens, int64_t columns, bool for_training) const {
  return MakeMemory(tokens, columns, for_training);
}

float* CausalStack::OutputGradient(Network::Memory* memory) const { return static_cast<Memory*>(memory)->d_outputs; }

void CausalStack::TakeOrder(std::vector<Sequence> sequences, Memory* memory) const {
  memory->ordered.resize(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) memory->ordered[i] = static_cast<int64_t>(i);
  const auto at = [&](int64_t sequence) -> const Sequence& { return sequences[static_cast<size_t>(sequence)]; };
  std::stable_sort(memory->ordered.begin(), memory->ordered.end(),
                   [&](int64_t a, int64_t b) { return at(a).length > at(b).length; });
  std::vector<int64_t> lengths;
  for (const int64_t sequence : memory->ordered) lengths.push_back(at(sequence).length);
  memory->order.Set(lengths);
  memory->tokens.clear();
  for (int64_t step = 0; step < memory->order.steps(); ++step) {
    for (int64_t i = 0; i < memory->order.count(step); ++i) {
      memory->tokens.push_back(at(memory->ordered[static_cast<size_t>(i)]).first + step);
    }
  }
}

Lookup CausalStack::LookupOf(const Memory& memory) const {
  const auto count = static_cast<int64_t>(memory.ids.size());
  return {memory.ids.data(), 1, count, count, nullptr};
}

// Site 0 is behind the embeddings, the others are in the layers.
Dropout CausalStack::DropoutAt(const Noise& noise, size_t site) const {
  if (noise.key == nullptr) return {};
  return {*noise.key, site, dropout_};
}

CausalPass CausalStack::PassOf(const kernels::Compute& compute, const NetworkWeights& weights, const Noise& noise,
                               size_t layer, const Memory& memory) const {
  return {compute, weights.base, memory.order, DropoutAt(noise, layer + 1), memory.scratch};
}

absl::StatusOr<const float*> CausalStack::Run(const kernels::Compute& compute, const NetworkWeights& weights,
                                              const Noise& noise, GroupHook need, absl::Span<float* const> states,
                                              Memory* memory) const {
  const kernels::FlushDenormals flush;
  const int64_t rows = memory->order.rows();
  MILLRACE_RETURN_IF_ERROR(need(0));
  float* x = memory->inputs[0];
  EmbeddingForward(compute, LookupOf(*memory), TensorAt(tensors_, weights.base, input_embedding_), nullptr,
                   hidden_size_, x);
  ApplyDropout(compute, DropoutAt(noise, 0), rows * hidden_size_, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(need(static_cast<uint32_t>(i) + 1));
    float* const y = memory->inputs[memory->for_training ? i + 1 : (i + 1) % 2];
    layers_[i]->Forward(PassOf(compute, weights, noise, i, *memory), x, states.empty() ? nullptr : states[i],
                        memory->kept[memory->for_training ? i : 0], y);
    x = y;
  }
  MILLRACE_RETURN_IF_ERROR(need(last_group()));
  NormForward(compute, NormKind::kLayer, x, TensorAt(tensors_, weights.base, last_norm_.gain),
              TensorAt(tensors_, weights.base, last_norm_.bias), epsilon_, rows, hidden_size_, memory->normed,
              memory->last_mean, memory->last_rstd);
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(memory->normed + row * hidden_size_, hidden_size_,
                memory->outputs + memory->tokens[static_cast<size_t>(row)] * hidden_size_);
  }
  return memory->outputs;
}

absl::StatusOr<const float*> CausalStack::Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                                  const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                                  Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  MILLRACE_RETURN_IF_ERROR(CheckRoom(weights, tokens, memory->capacity, memory->max_columns));
  MILLRACE_ASSIGN_OR_RETURN(std::vector<Sequence> sequences, SequencesOf(tokens));
  for (int64_t row = 0; tokens.starts == nullptr && row < tokens.rows; ++row) {
    sequences.push_back({row * tokens.columns, tokens.columns});
  }
  TakeOrder(std::move(sequences), memory);
  memory->ids.clear();
  for (const int64_t token : memory->tokens) {
    memory->ids.push_back(tokens.ids[token / tokens.columns * tokens.row_stride + token % tokens.columns]);
  }
  return Run(compute, weights, noise, need, {}, memory);
}

absl::Status CausalStack::Backward(const kernels::Compute& compute, const NetworkWeights& weights,
                                   const TokenMatrix& tokens, const Noise& noise, Trainable trainable, float* gradients,
                                   GroupHook final, Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  const kernels::FlushDenormals flush;
  const int64_t rows = memory->order.rows(), hidden = rows * hidden_size_;
  const int lowest = LowestTrained(weights, trainable);
  if (NeedsOutputGradient(weights, trainable)) {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(memory->d_outputs + memory->tokens[static_cast<size_t>(row)] * hidden_size_, hidden_size_,
                  memory->d_normed + row * hidden_size_);
    }
    std::fill_n(memory->d_x, hidden, 0.0f);
    NormBackward(compute, NormKind::kLayer, memory->inputs.back(), TensorAt(tensors_, weights.base, last_norm_.gain),
                 memory->last_mean, memory->last_rstd, memory->d_normed, rows, hidden_size_,
                 lowest < last_norm_.gain ? memory->d_x : nullptr,
                 GradientAt(tensors_, gradients, last_norm_.gain, trainable),
                 GradientAt(tensors_, gradients, last_norm_.bias, trainable));
  }
  MILLRACE_RETURN_IF_ERROR(final(last_group()));
  for (size_t i = layers_.size(); i-- > 0;) {
    const int first_above = i + 1 < layers_.size() ? layers_[i + 1]->first_tensor() : last_norm_.gain;
    if (lowest < first_above) {
      layers_[i]->Backward(PassOf(compute, weights, noise, i, *memory), memory->inputs[i], memory->kept[i], memory->d_x,
                           lowest < layers_[i]->first_tensor(), trainable, gradients);
    }
    MILLRACE_RETURN_IF_ERROR(final(static_cast<uint32_t>(i) + 1));
  }
  if (lowest < layers_[0]->first_tensor()) {
    ApplyDropout(compute, DropoutAt(noise, 0), hidden, memory->d_x);
    EmbeddingBackward(compute, LookupOf(*memory), hidden_size_, memory->d_x,
                      GradientAt(tensors_, gradients, input_embedding_, trainable), nullptr);
  }
  return final(0);
}

// ---- token by token ----

absl::StatusOr<Network::OwnedCache> CausalStack::NewCache(int64_t sequences, int64_t columns, int64_t tokens) const {
  auto cache = std::make_unique<Cache>();
  MILLRACE_ASSIGN_OR_RETURN(cache->memory, MakeMemory(tokens, columns, /*for_training=*/false));
  cache->sequences = sequences;
  const auto lay_out = [&](Arena* arena) {
    for (std::vector<float*>* states : {&cache->states, &cache->running}) {
      states->assign(layers_.size(), nullptr);
      for (size_t i = 0; i < layers_.size(); ++i) (*states)[i] = arena->Take(sequences * layers_[i]->state_size());
    }
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(cache->arena, Arena::Create(measure.taken()));
  lay_out(&cache->arena);
  return cache;
}

uint64_t CausalStack::SequenceBytes() const {
  return sizeof(float) * layers_.size() * static_cast<uint64_t>(layers_[0]->state_size());
}

absl::Status CausalStack::Begin(const kernels::Compute& compute, const NetworkWeights& weights,
                                Network::Cache* cache) const {
  for (int64_t i = 0; i < static_cast<Cache*>(cache)->sequences; ++i) ClearSequence(i, cache);
  return absl::OkStatus();
}

void CausalStack::ClearSequence(int64_t sequence, Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  for (size_t i = 0; i < layers_.size(); ++i) {
    std::fill_n(cache->states[i] + sequence * layers_[i]->state_size(), layers_[i]->state_size(), 0.0f);
  }
}

void CausalStack::CopySequence(int64_t from, int64_t to, Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const int64_t size = layers_[i]->state_size();
    std::copy_n(cache->states[i] + from * size, size, cache->states[i] + to * size);
  }
}

const float* CausalStack::Extend(const kernels::Compute& compute, const NetworkWeights& weights,
                                 absl::Span<const Appended> appended, Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  Memory* const memory = cache->memory.get();
  std::vector<Sequence> sequences;
  std::vector<uint32_t> ids;
  for (const Appended& about : appended) {
    sequences.push_back({static_cast<int64_t>(ids.size()), static_cast<int64_t>(about.ids.size())});
    ids.insert(ids.end(), about.ids.begin(), about.ids.end());
  }
  TakeOrder(std::move(sequences), memory);
  memory->ids.clear();
  for (const int64_t token : memory->tokens) memory->ids.push_back(ids[static_cast<size_t>(token)]);
  const auto move_states = [&](bool back) {
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const int64_t size = layers_[layer]->state_size();
      for (size_t i = 0; i < memory->ordered.size(); ++i) {
        float* const own = cache->states[layer] + appended[static_cast<size_t>(memory->ordered[i])].sequence * size;
        float* const running = cache->running[layer] + static_cast<int64_t>(i) * size;
        std::copy_n(back ? running : own, size, back ? own : running);
      }
    }
  };
  move_states(/*back=*/false);
  // Nothing is waited for, so that nothing can fail.
  const float* const outputs = *Run(compute, weights, {}, &IgnoreGroup, cache->running, memory);
  move_states(/*back=*/true);
  return outputs;
}

}  // namespace millrace::model
