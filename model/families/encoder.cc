#include "model/families/encoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/functions.h"
#include "kernels/rows.h"
#include "model/arena.h"
#include "model/families/tensors.h"
#include "model/layers/dropout.h"

namespace millrace::model {
namespace {

constexpr int64_t kGrain = 1 << 13;  // elements
constexpr int64_t kTypes = 2;

// Places of dropout in a layer; the embeddings' is that of layer 0.
enum Place : uint64_t { kAttention, kAttentionOutput, kMlpOutput, kEmbeddings, kPlaces };

absl::Status CheckSpec(const v1::ModelSpec& spec, Head head) {
  const auto wrong = [](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("model: ", what)); };
  if (head != Head::kLanguage) return wrong("bert has no scalar head: reward models and values are decoders");
  if (spec.heads() == 0) return wrong("heads must be at least 1");
  if (spec.heads() > 1024 || spec.intermediate_size() > 1'048'576) return wrong("a size is beyond what is supported");
  if (spec.hidden_size() % spec.heads() != 0) {
    return wrong(absl::StrCat("hidden_size ", spec.hidden_size(), " is not a multiple of heads ", spec.heads()));
  }
  if (spec.has_kv_heads() && spec.kv_heads() != spec.heads()) return wrong("bert has as many kv_heads as heads");
  if (spec.has_sliding_window()) return wrong("bert has no sliding_window; mistral and qwen2 have");
  if (spec.intermediate_size() == 0) return wrong("intermediate_size must be at least 1");
  if (!spec.tied_embeddings()) return wrong("bert's tied_embeddings cannot be false");
  if (!spec.bias()) return wrong("bert's bias cannot be false");
  return absl::OkStatus();
}

}  // namespace

class Encoder::Memory : public Network::Memory {
 public:
  Arena arena;
  bool for_training = false;
  int64_t capacity = 0;  // tokens
  int64_t max_columns = 0;
  // Of the pass: each token's position and type, and the sequences of packed rows.
  std::vector<uint32_t> positions, types;
  std::vector<Sequence> sequences;
  NormMemory embedding_norm;
  // [tokens, hidden]: for training each layer's input and the outputs, else two between which they alternate.
  std::vector<float*> inputs;
  std::vector<LayerMemory> layers;  // one if not for training
  float* branch = nullptr;          // [tokens, hidden]
  // For training: gradients of …
  float* d_outputs = nullptr;    // [tokens, hidden]
  float* d_residual = nullptr;   // [tokens, hidden]
  float* d_middle = nullptr;     // [tokens, hidden]
  float* d_attended = nullptr;   // [tokens, hidden]
  float* d_qkv = nullptr;        // [tokens, 3 hidden]
  float* d_activated = nullptr;  // [tokens, intermediate]; then of GELU's input
};

bool IsEncoder(absl::string_view family) { return family == "bert"; }

absl::StatusOr<std::unique_ptr<Network>> Encoder::Create(const v1::ModelSpec& spec, uint32_t vocab_size, Head head) {
  MILLRACE_RETURN_IF_ERROR(CheckSpec(spec, head));
  return std::unique_ptr<Network>(new Encoder(spec, vocab_size));
}

Encoder::Encoder(const v1::ModelSpec& spec, uint32_t vocab_size)
    : Network(spec, vocab_size),
      heads_(spec.heads()),
      head_size_(hidden_size_ / heads_),
      intermediate_size_(spec.intermediate_size()),
      epsilon_(static_cast<float>(spec.norm_epsilon())),
      dropout_(static_cast<float>(spec.dropout())) {
  const std::string embeddings = "bert.embeddings.";
  input_embedding_ = AddTable(embeddings + "word_embeddings.weight", vocab_size_, 0, spec_.init_std());
  position_embedding_ = AddTable(embeddings + "position_embeddings.weight", spec_.context(), 0, spec_.init_std());
  type_embedding_ = AddTable(embeddings + "token_type_embeddings.weight", kTypes, 0, spec_.init_std());
  embedding_norm_ = AddNorm(embeddings + "LayerNorm", 0);
  for (uint32_t i = 0; i < spec_.layers(); ++i) {
    const std::string prefix = absl::StrCat("bert.encoder.layer.", i, ".");
    const uint32_t group = i + 1;
    Layer& layer = layers_.emplace_back();
    layer.query = AddLinear(prefix + "attention.self.query", hidden_size_, hidden_size_, group);
    layer.key = AddLinear(prefix + "attention.self.key", hidden_size_, hidden_size_, group);
    layer.value = AddLinear(prefix + "attention.self.value", hidden_size_, hidden_size_, group);
    layer.attention_output = AddLinear(prefix + "attention.output.dense", hidden_size_, hidden_size_, group);
    layer.attention_norm = AddNorm(prefix + "attention.output.LayerNorm", group);
    layer.up = AddLinear(prefix + "intermediate.dense", hidden_size_, intermediate_size_, group);
    layer.down = AddLinear(prefix + "output.dense", intermediate_size_, hidden_size_, group);
    layer.output_norm = AddNorm(prefix + "output.LayerNorm", group);
  }
  AddHead();
}

// ---- tensors ----

LinearTensors Encoder::AddLinear(const std::string& name, int64_t inputs, int64_t outputs, uint32_t group) {
  return model::AddLinear(&tensors_, name, {.inputs = inputs, .outputs = outputs, .std = spec_.init_std()}, group);
}

NormTensors Encoder::AddNorm(const std::string& name, uint32_t group) {
  return model::AddNorm(&tensors_, name, hidden_size_, /*bias=*/true, group);
}

void Encoder::AddHead() {
  const uint32_t group = last_group();
  MaskedHead head;
  head.pooler = AddLinear("bert.pooler.dense", hidden_size_, hidden_size_, group);
  head.bias = AddBias(&tensors_, "cls.predictions.bias", vocab_size_, group);
  head.transform = AddLinear("cls.predictions.transform.dense", hidden_size_, hidden_size_, group);
  head.norm = AddNorm("cls.predictions.transform.LayerNorm", group);
  head.next_sentence = AddLinear("cls.seq_relationship", hidden_size_, 2, group);
  masked_head_ = head;
}

// ---- memory ----

absl::StatusOr<Network::OwnedMemory> Encoder::NewMemory(int64_t tokens, int64_t columns, bool for_training) const {
  auto memory = std::make_unique<Memory>();
  memory->for_training = for_training;
  memory->capacity = tokens;
  memory->max_columns = columns;
  const auto lay_out = [&](Arena* arena) {
    const int64_t hidden = tokens * hidden_size_, intermediate = tokens * intermediate_size_;
    const auto norm = [&](NormMemory* kept) {
      kept->input = arena->Take(hidden);
      kept->mean = arena->Take(tokens);
      kept->rstd = arena->Take(tokens);
    };
    norm(&memory->embedding_norm);
    memory->inputs.assign(for_training ? layers_.size() + 1 : 2, nullptr);
    for (float*& input : memory->inputs) input = arena->Take(hidden);
    memory->layers.assign(for_training ? layers_.size() : 1, {});
    for (LayerMemory& layer : memory->layers) {
      layer.qkv = arena->Take(3 * hidden);
      // Of a sequence shorter than `columns` there may be more, but their squares take no more room in all.
      if (for_training) layer.probabilities = arena->Take(tokens * heads_ * columns);
      layer.attended = arena->Take(hidden);
      norm(&layer.attention_norm);
      layer.middle = arena->Take(hidden);
      layer.up = arena->Take(intermediate);
      layer.activated = arena->Take(intermediate);
      norm(&layer.output_norm);
    }
    memory->branch = arena->Take(hidden);
    if (!for_training) return;
    memory->d_outputs = arena->Take(hidden);
    memory->d_residual = arena->Take(hidden);
    memory->d_middle = arena->Take(hidden);
    memory->d_attended = arena->Take(hidden);
    memory->d_qkv = arena->Take(3 * hidden);
    memory->d_activated = arena->Take(intermediate);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(memory->arena, Arena::Create(measure.taken()));
  lay_out(&memory->arena);
  return memory;
}

float* Encoder::OutputGradient(Network::Memory* memory) const { return static_cast<Memory*>(memory)->d_outputs; }

absl::Status Encoder::TakeSequences(const TokenMatrix& tokens, Memory* memory) const {
  MILLRACE_ASSIGN_OR_RETURN(memory->sequences, SequencesOf(tokens));
  memory->positions.resize(static_cast<size_t>(tokens.tokens()));
  memory->types.resize(memory->positions.size());
  for (int64_t row = 0; row < tokens.rows; ++row) {
    for (int64_t column = 0; column < tokens.columns; ++column) {
      const int64_t from = row * tokens.row_stride + column;
      const auto to = static_cast<size_t>(row * tokens.columns + column);
      const uint32_t start = tokens.starts == nullptr ? 0 : tokens.starts[from];
      memory->positions[to] = static_cast<uint32_t>(column) - start;
      memory->types[to] = tokens.types == nullptr ? 0 : tokens.types[from];
      if (memory->types[to] < kTypes) continue;
      return absl::InvalidArgumentError(absl::StrCat("row ", row, ", column ", column, ": a token of type ",
                                                     memory->types[to], "; there are 0 and 1"));
    }
  }
  return absl::OkStatus();
}

// ---- a layer, forward and backward ----

Dropout Encoder::DropoutAt(const Noise& noise, size_t layer, uint64_t place) const {
  if (noise.key == nullptr) return {};
  return {*noise.key, layer * kPlaces + place, dropout_};
}

Linear Encoder::LinearOf(const LinearTensors& tensors) const {
  const std::vector<int64_t>& shape = tensors_[tensors.weight].shape;
  return {shape[1], shape[0], false, precision_};
}

AttentionShape Encoder::ShapeOf(const TokenMatrix& tokens, const Memory& memory) const {
  AttentionShape shape;
  shape.rows = tokens.rows;
  shape.columns = tokens.columns;
  shape.sequences = memory.sequences;
  shape.heads = shape.kv_heads = heads_;
  shape.head_size = head_size_;
  shape.stride = 3 * hidden_size_;
  shape.causal = false;
  shape.precision = precision_;
  return shape;
}

Lookup Encoder::WordsOf(const TokenMatrix& tokens, const Memory& memory) const {
  return {tokens.ids, tokens.rows, tokens.columns, tokens.row_stride, memory.positions.data()};
}

Lookup Encoder::TypesOf(const TokenMatrix& tokens, const Memory& memory) const {
  return {memory.types.data(), tokens.rows, tokens.columns, tokens.columns, nullptr};
}

void Encoder::ApplyLinear(const Pass& pass, const LinearTensors& tensors, const float* x, float* y,
                          int64_t y_stride) const {
  LinearForward(pass.compute, LinearOf(tensors), x, pass.shape.tokens(),
                TensorAt(tensors_, pass.weights, tensors.weight), TensorAt(tensors_, pass.weights, tensors.bias), y,
                y_stride);
}

void Encoder::ApplyNorm(const Pass& pass, const NormTensors& tensors, const NormMemory& memory, float* y) const {
  NormForward(pass.compute, NormKind::kLayer, memory.input, TensorAt(tensors_, pass.weights, tensors.gain),
              TensorAt(tensors_, pass.weights, tensors.bias), epsilon_, pass.shape.tokens(), hidden_size_, y,
              memory.mean, memory.rstd);
}

void Encoder::ForwardLayer(const Pass& pass, size_t index, const float* x, const LayerMemory& kept, float* y) const {
  const kernels::Compute& compute = pass.compute;
  const Layer& layer = layers_[index];
  const int64_t rows = pass.shape.tokens(), hidden = rows * hidden_size_, stride = pass.shape.stride;
  ApplyLinear(pass, layer.query, x, kept.qkv, stride);
  ApplyLinear(pass, layer.key, x, kept.qkv + hidden_size_, stride);
  ApplyLinear(pass, layer.value, x, kept.qkv + 2 * hidden_size_, stride);
  AttentionForward(compute, pass.shape, kept.qkv, kept.qkv + hidden_size_, kept.qkv + 2 * hidden_size_,
                   DropoutAt(pass.noise, index, kAttention), pass.memory.for_training, kept.probabilities,
                   kept.attended);
  float* const attention_sum = kept.attention_norm.input;
  ApplyLinear(pass, layer.attention_output, kept.attended, attention_sum, hidden_size_);
  ApplyDropout(compute, DropoutAt(pass.noise, index, kAttentionOutput), hidden, attention_sum);
  kernels::Add(compute, x, hidden, attention_sum);
  ApplyNorm(pass, layer.attention_norm, kept.attention_norm, kept.middle);

  ApplyLinear(pass, layer.up, kept.middle, kept.up, intermediate_size_);
  compute.ParallelFor(rows * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    kernels::ErfGelu(compute.isa(), kept.up + begin, kept.activated + begin, end - begin);
  });
  float* const output_sum = kept.output_norm.input;
  ApplyLinear(pass, layer.down, kept.activated, output_sum, hidden_size_);
  ApplyDropout(compute, DropoutAt(pass.noise, index, kMlpOutput), hidden, output_sum);
  kernels::Add(compute, kept.middle, hidden, output_sum);
  ApplyNorm(pass, layer.output_norm, kept.output_norm, y);
}

// memory.d_residual: the gradient of the layer's output becomes that of its input, if a tensor below `lowest`'s layer
// is trained. Tensors are numbered in the order of the forward pass: what lies below one has smaller numbers.
void Encoder::BackwardLayer(const Pass& pass, size_t index, Trainable trainable, int lowest, float* gradients) const {
  const kernels::Compute& compute = pass.compute;
  const Memory& memory = pass.memory;
  const Layer& layer = layers_[index];
  const LayerMemory& kept = memory.layers[index];
  const float* const x = memory.inputs[index];
  const int64_t rows = pass.shape.tokens(), hidden = rows * hidden_size_, stride = pass.shape.stride;
  // dx += or =; nothing below a tensor that is not above the lowest trained one.
  const auto linear = [&](const LinearTensors& tensors, const float* input, const float* dy, int64_t dy_stride,
                          float* dx, bool accumulate) {
    LinearBackward(compute, LinearOf(tensors), input, rows, TensorAt(tensors_, pass.weights, tensors.weight), dy,
                   dy_stride, lowest < tensors.weight ? dx : nullptr, accumulate,
                   GradientAt(tensors_, gradients, tensors.weight, trainable),
                   GradientAt(tensors_, gradients, tensors.bias, trainable));
  };
  const auto norm = [&](const NormTensors& tensors, const NormMemory& of_norm, const float* dy, float* dx) {
    std::fill_n(dx, hidden, 0.0f);
    NormBackward(compute, NormKind::kLayer, of_norm.input, TensorAt(tensors_, pass.weights, tensors.gain), of_norm.mean,
                 of_norm.rstd, dy, rows, hidden_size_, lowest < tensors.gain ? dx : nullptr,
                 GradientAt(tensors_, gradients, tensors.gain, trainable),
                 GradientAt(tensors_, gradients, tensors.bias, trainable));
  };

  // Of what a branch made, before its dropout; a copy where that changes it.
  const auto d_branch = [&](Place place, float* d_sum) {
    const Dropout dropout = DropoutAt(pass.noise, index, place);
    if (dropout.rate == 0.0f) return d_sum;
    kernels::Copy(compute, d_sum, hidden, memory.branch);
    ApplyDropout(compute, dropout, hidden, memory.branch);
    return memory.branch;
  };

  // y = norm(m + down(GELU(up(m))))
  norm(layer.output_norm, kept.output_norm, memory.d_residual, memory.d_middle);
  if (lowest >= layer.output_norm.gain) return;
  linear(layer.down, kept.activated, d_branch(kMlpOutput, memory.d_middle), hidden_size_, memory.d_activated, false);
  if (lowest >= layer.down.weight) return;
  compute.ParallelFor(rows * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    kernels::ErfGeluBackward(compute.isa(), kept.up + begin, memory.d_activated + begin, memory.d_activated + begin,
                             end - begin);
  });
  linear(layer.up, kept.middle, memory.d_activated, intermediate_size_, memory.d_middle, true);
  if (lowest >= layer.up.weight) return;

  // m = norm(x + dense(attention(x)))
  norm(layer.attention_norm, kept.attention_norm, memory.d_middle, memory.d_residual);
  if (lowest >= layer.attention_norm.gain) return;
  linear(layer.attention_output, kept.attended, d_branch(kAttentionOutput, memory.d_residual), hidden_size_,
         memory.d_attended, false);
  if (lowest >= layer.attention_output.weight) return;
  float* const dq = memory.d_qkv;
  float* const dk = dq + hidden_size_;
  float* const dv = dk + hidden_size_;
  AttentionBackward(compute, pass.shape, kept.qkv, kept.qkv + hidden_size_, kept.qkv + 2 * hidden_size_,
                    DropoutAt(pass.noise, index, kAttention), kept.probabilities, memory.d_attended, dq, dk, dv);
  // All three go on to the input only if a tensor below the first of them is trained.
  float* const dx = lowest < layer.query.weight ? memory.d_residual : nullptr;
  linear(layer.query, x, dq, stride, dx, true);
  linear(layer.key, x, dk, stride, dx, true);
  linear(layer.value, x, dv, stride, dx, true);
}

// ---- the whole ----

absl::StatusOr<const float*> Encoder::Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                              const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                              Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  MILLRACE_RETURN_IF_ERROR(CheckRoom(weights, tokens, memory->capacity, memory->max_columns));
  MILLRACE_RETURN_IF_ERROR(TakeSequences(tokens, memory));
  const kernels::FlushDenormals flush;
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const Pass pass = {compute, weights.base, noise, *memory, shape};
  const int64_t hidden = tokens.tokens() * hidden_size_;
  MILLRACE_RETURN_IF_ERROR(need(0));
  float* const sum = memory->embedding_norm.input;
  EmbeddingForward(compute, WordsOf(tokens, *memory), TensorAt(tensors_, weights.base, input_embedding_),
                   TensorAt(tensors_, weights.base, position_embedding_), hidden_size_, sum);
  EmbeddingForward(compute, TypesOf(tokens, *memory), TensorAt(tensors_, weights.base, type_embedding_), nullptr,
                   hidden_size_, memory->branch);
  kernels::Add(compute, memory->branch, hidden, sum);
  float* x = memory->inputs[0];
  ApplyNorm(pass, embedding_norm_, memory->embedding_norm, x);
  ApplyDropout(compute, DropoutAt(noise, 0, kEmbeddings), hidden, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(need(static_cast<uint32_t>(i) + 1));
    float* const y = memory->inputs[memory->for_training ? i + 1 : (i + 1) % 2];
    ForwardLayer(pass, i, x, memory->layers[memory->for_training ? i : 0], y);
    x = y;
  }
  // What the outputs are used for is of the last group.
  MILLRACE_RETURN_IF_ERROR(need(last_group()));
  return x;
}

absl::Status Encoder::Backward(const kernels::Compute& compute, const NetworkWeights& weights,
                               const TokenMatrix& tokens, const Noise& noise, Trainable trainable, float* gradients,
                               GroupHook final, Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  const kernels::FlushDenormals flush;
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const Pass pass = {compute, weights.base, noise, *memory, shape};
  const int64_t rows = tokens.tokens(), hidden = rows * hidden_size_;
  const int lowest = LowestTrained(weights, trainable);
  const auto gradient_of = [&](int tensor) { return GradientAt(tensors_, gradients, tensor, trainable); };
  MILLRACE_RETURN_IF_ERROR(final(last_group()));
  if (NeedsOutputGradient(weights, trainable)) kernels::Copy(compute, memory->d_outputs, hidden, memory->d_residual);
  for (size_t i = layers_.size(); i-- > 0;) {
    const int first_above = i + 1 < layers_.size() ? layers_[i + 1].query.weight : masked_head_->pooler.weight;
    if (lowest < first_above) BackwardLayer(pass, i, trainable, lowest, gradients);
    MILLRACE_RETURN_IF_ERROR(final(static_cast<uint32_t>(i) + 1));
  }
  if (lowest < layers_[0].query.weight) {
    ApplyDropout(compute, DropoutAt(noise, 0, kEmbeddings), hidden, memory->d_residual);
    std::fill_n(memory->d_middle, hidden, 0.0f);
    NormBackward(compute, NormKind::kLayer, memory->embedding_norm.input,
                 TensorAt(tensors_, weights.base, embedding_norm_.gain), memory->embedding_norm.mean,
                 memory->embedding_norm.rstd, memory->d_residual, rows, hidden_size_,
                 lowest < embedding_norm_.gain ? memory->d_middle : nullptr, gradient_of(embedding_norm_.gain),
                 gradient_of(embedding_norm_.bias));
    if (lowest < embedding_norm_.gain) {
      EmbeddingBackward(compute, WordsOf(tokens, *memory), hidden_size_, memory->d_middle,
                        gradient_of(input_embedding_), gradient_of(position_embedding_));
      EmbeddingBackward(compute, TypesOf(tokens, *memory), hidden_size_, memory->d_middle, gradient_of(type_embedding_),
                        nullptr);
    }
  }
  return final(0);
}

// ---- token by token ----

absl::StatusOr<Network::OwnedCache> Encoder::NewCache(int64_t, int64_t, int64_t) const { return CheckExtends(); }

absl::Status Encoder::Begin(const kernels::Compute&, const NetworkWeights&, Network::Cache*) const {
  return CheckExtends();
}

void Encoder::ClearSequence(int64_t, Network::Cache*) const {}
void Encoder::CopySequence(int64_t, int64_t, Network::Cache*) const {}
const float* Encoder::Extend(const kernels::Compute&, const NetworkWeights&, absl::Span<const Appended>,
                             Network::Cache*) const {
  return nullptr;
}

}  // namespace millrace::model
