#include "model/families/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "Eigen/Core"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/functions.h"
#include "model/layers/embedding.h"

namespace millrace::model {
namespace {

constexpr int64_t kGrain = 1 << 13;  // elements

// Places of dropout in a layer; the embeddings' is that of layer 0.
enum Place : uint64_t { kAttention, kAttentionOutput, kMlpOutput, kEmbeddings, kPlaces };

using Values = Eigen::Map<Eigen::ArrayXf>;
using ConstValues = Eigen::Map<const Eigen::ArrayXf>;

// out = a + b.
void AddInto(const kernels::Compute& compute, const float* a, const float* b, int64_t n, float* out) {
  compute.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    Values(out + begin, size) = ConstValues(a + begin, size) + ConstValues(b + begin, size);
  });
}

void Copy(const kernels::Compute& compute, const float* from, int64_t n, float* to) {
  compute.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    Values(to + begin, end - begin) = ConstValues(from + begin, end - begin);
  });
}

absl::Status CheckSpec(const v1::ModelSpec& spec, uint32_t vocab_size) {
  const auto wrong = [](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("model: ", what)); };
  if (spec.family() != "gpt2" && spec.family() != "llama") {
    return wrong(absl::StrCat("there is no family '", spec.family(), "'; gpt2 and llama are known"));
  }
  if (vocab_size == 0) return wrong("the vocabulary is empty");
  if (spec.layers() == 0 || spec.hidden_size() == 0 || spec.heads() == 0 || spec.context() == 0) {
    return wrong("layers, hidden_size, heads and context must be at least 1");
  }
  if (spec.layers() > 512 || spec.hidden_size() > 65'536 || spec.context() > 131'072 || spec.heads() > 1024 ||
      spec.intermediate_size() > 1'048'576 || vocab_size > 16'777'216) {
    return wrong("a size is beyond what is supported");
  }
  if (spec.hidden_size() % spec.heads() != 0) {
    return wrong(absl::StrCat("hidden_size ", spec.hidden_size(), " is not a multiple of heads ", spec.heads()));
  }
  const uint32_t kv_heads = spec.has_kv_heads() ? spec.kv_heads() : spec.heads();
  if (kv_heads == 0 || spec.heads() % kv_heads != 0) {
    return wrong(absl::StrCat("heads ", spec.heads(), " is not a multiple of kv_heads ", kv_heads));
  }
  if (spec.family() == "gpt2" && kv_heads != spec.heads()) return wrong("gpt2 has as many kv_heads as heads");
  if (spec.family() == "llama" && spec.hidden_size() / spec.heads() % 2 != 0) {
    return wrong(absl::StrCat("llama turns pairs of a head's numbers: hidden_size / heads = ",
                              spec.hidden_size() / spec.heads(), " must be even"));
  }
  if (spec.intermediate_size() == 0) return wrong("intermediate_size must be at least 1");
  return absl::OkStatus();
}

}  // namespace

class Decoder::Memory {
 public:
  Arena arena;
  bool for_training = false;
  // Of the pass: each token's position, and the sequences of packed rows.
  std::vector<uint32_t> positions;
  std::vector<Sequence> sequences;
  int64_t capacity = 0;  // tokens
  int64_t max_columns = 0;
  std::vector<LayerMemory> layers;  // one if not for training
  float* other_input = nullptr;     // not for training: inputs alternate between two
  float* last = nullptr;            // [tokens, hidden]: input of the last norm
  float* last_mean = nullptr;       // [tokens]
  float* last_rstd = nullptr;       // [tokens]
  float* outputs = nullptr;         // [tokens, hidden]
  float* branch = nullptr;          // [tokens, hidden]
  // For training: gradients of …
  float* d_outputs = nullptr;    // [tokens, hidden]
  float* d_residual = nullptr;   // [tokens, hidden]
  float* d_normed = nullptr;     // [tokens, hidden]
  float* d_attended = nullptr;   // [tokens, hidden]
  float* d_qkv = nullptr;        // [tokens, qkv]
  float* d_gate = nullptr;       // [tokens, intermediate]
  float* d_up = nullptr;         // [tokens, intermediate]
  float* d_activated = nullptr;  // [tokens, intermediate]
};

class Decoder::Cache {
 public:
  OwnedMemory memory;
  Arena arena;
  int64_t columns = 0;
  std::vector<float*> keys;  // by layer, [sequences, columns, kv_heads * head_size]
  std::vector<float*> values;
  std::vector<int64_t> tokens;  // by sequence
  // Of an extension, one after another.
  std::vector<uint32_t> ids;
  std::vector<Continuation> continuations;
};

void Decoder::Free::operator()(Memory* memory) const { delete memory; }
void Decoder::Free::operator()(Cache* cache) const { delete cache; }

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const v1::ModelSpec& spec, uint32_t vocab_size, Head head) {
  MILLRACE_RETURN_IF_ERROR(CheckSpec(spec, vocab_size));
  return std::unique_ptr<Decoder>(new Decoder(spec, vocab_size, head));
}

Decoder::Decoder(const v1::ModelSpec& spec, uint32_t vocab_size, Head head)
    : spec_(spec),
      vocab_size_(vocab_size),
      hidden_size_(spec.hidden_size()),
      heads_(spec.heads()),
      kv_heads_(spec.has_kv_heads() ? spec.kv_heads() : spec.heads()),
      head_size_(hidden_size_ / heads_),
      intermediate_size_(spec.intermediate_size()),
      context_(spec.context()),
      epsilon_(static_cast<float>(spec.norm_epsilon())),
      dropout_(static_cast<float>(spec.dropout())),
      precision_(spec.precision() == "bf16" ? kernels::Precision::kBf16 : kernels::Precision::kF32),
      norm_kind_(spec.family() == "gpt2" ? NormKind::kLayer : NormKind::kRms) {
  AddTensors(head);
  if (!gpt2()) rope_ = RopeTable(context_, head_size_, spec.rope_theta());
}

// ---- tensors ----

LinearTensors Decoder::AddLinear(const std::string& name, int64_t inputs, int64_t outputs, uint32_t group,
                                 bool residual) {
  TensorSpec weight;
  weight.name = name + ".weight";
  weight.shape = gpt2() ? std::vector<int64_t>{inputs, outputs} : std::vector<int64_t>{outputs, inputs};
  weight.role = Role::kMatrix;
  weight.rows_are_inputs = gpt2();
  weight.group = group;
  weight.start = Start::kNormal;
  // Radford et al. 2019, section 2.3: what adds to the residual stream starts smaller by the root of how many do.
  weight.start_std =
      static_cast<float>(spec_.init_std() / (residual ? std::sqrt(2.0 * static_cast<double>(spec_.layers())) : 1.0));
  LinearTensors tensors;
  tensors.weight = tensors_.Add(std::move(weight));
  if (gpt2() && spec_.bias()) {
    TensorSpec bias;
    bias.name = name + ".bias";
    bias.shape = {outputs};
    bias.group = group;
    tensors.bias = tensors_.Add(std::move(bias));
  }
  return tensors;
}

NormTensors Decoder::AddNorm(const std::string& name, uint32_t group) {
  TensorSpec gain;
  gain.name = name + ".weight";
  gain.shape = {hidden_size_};
  gain.group = group;
  gain.start = Start::kOnes;
  NormTensors tensors;
  tensors.gain = tensors_.Add(std::move(gain));
  if (gpt2() && spec_.bias()) {
    TensorSpec bias;
    bias.name = name + ".bias";
    bias.shape = {hidden_size_};
    bias.group = group;
    tensors.bias = tensors_.Add(std::move(bias));
  }
  return tensors;
}

void Decoder::AddTensors(Head head) {
  const auto table = [this](const std::string& name, int64_t rows, uint32_t group, double std) {
    TensorSpec spec;
    spec.name = name;
    spec.shape = {rows, hidden_size_};
    spec.role = Role::kEmbedding;
    spec.group = group;
    spec.start = Start::kNormal;
    spec.start_std = static_cast<float>(std);
    return tensors_.Add(std::move(spec));
  };
  const int64_t kv_size = kv_heads_ * head_size_;
  if (gpt2()) {
    input_embedding_ = table("transformer.wte.weight", vocab_size_, 0, spec_.init_std());
    position_embedding_ = table("transformer.wpe.weight", context_, 0, spec_.init_std());
  } else {
    input_embedding_ = table("model.embed_tokens.weight", vocab_size_, 0, spec_.init_std());
  }
  for (uint32_t i = 0; i < spec_.layers(); ++i) {
    Layer& layer = layers_.emplace_back();
    const uint32_t group = i + 1;
    if (gpt2()) {
      const std::string prefix = absl::StrCat("transformer.h.", i, ".");
      layer.attention_norm = AddNorm(prefix + "ln_1", group);
      layer.query = AddLinear(prefix + "attn.c_attn", hidden_size_, 3 * hidden_size_, group, false);
      layer.attention_output = AddLinear(prefix + "attn.c_proj", hidden_size_, hidden_size_, group, true);
      layer.mlp_norm = AddNorm(prefix + "ln_2", group);
      layer.up = AddLinear(prefix + "mlp.c_fc", hidden_size_, intermediate_size_, group, false);
      layer.down = AddLinear(prefix + "mlp.c_proj", intermediate_size_, hidden_size_, group, true);
    } else {
      const std::string prefix = absl::StrCat("model.layers.", i, ".");
      layer.attention_norm = AddNorm(prefix + "input_layernorm", group);
      layer.query = AddLinear(prefix + "self_attn.q_proj", hidden_size_, hidden_size_, group, false);
      layer.key = AddLinear(prefix + "self_attn.k_proj", hidden_size_, kv_size, group, false);
      layer.value = AddLinear(prefix + "self_attn.v_proj", hidden_size_, kv_size, group, false);
      layer.attention_output = AddLinear(prefix + "self_attn.o_proj", hidden_size_, hidden_size_, group, true);
      layer.mlp_norm = AddNorm(prefix + "post_attention_layernorm", group);
      layer.gate = AddLinear(prefix + "mlp.gate_proj", hidden_size_, intermediate_size_, group, false);
      layer.up = AddLinear(prefix + "mlp.up_proj", hidden_size_, intermediate_size_, group, false);
      layer.down = AddLinear(prefix + "mlp.down_proj", intermediate_size_, hidden_size_, group, true);
    }
  }
  last_norm_ = AddNorm(gpt2() ? "transformer.ln_f" : "model.norm", last_group());
  if (head == Head::kScalar) {
    // Stiennon et al. 2020, "Learning to summarize from human feedback".
    score_ = table("score.weight", 1, last_group(), 1.0 / std::sqrt(static_cast<double>(hidden_size_ + 1)));
  } else if (spec_.tied_embeddings()) {
    output_embedding_ = input_embedding_;
  } else {
    output_embedding_ = table("lm_head.weight", vocab_size_, last_group(), spec_.init_std());
  }
}

// ---- memory ----

absl::StatusOr<Decoder::OwnedMemory> Decoder::NewMemory(int64_t tokens, int64_t columns, bool for_training) const {
  OwnedMemory memory(new Memory);
  memory->for_training = for_training;
  memory->capacity = tokens;
  memory->max_columns = columns;
  const auto lay_out = [&](Arena* arena) {
    const int64_t hidden = tokens * hidden_size_, intermediate = tokens * intermediate_size_;
    memory->layers.assign(for_training ? layers_.size() : 1, {});
    for (LayerMemory& layer : memory->layers) {
      layer.input = arena->Take(hidden);
      layer.normed = arena->Take(hidden);
      layer.mean = arena->Take(tokens);
      layer.rstd = arena->Take(tokens);
      layer.qkv = arena->Take(tokens * qkv_size());
      // Of a sequence shorter than `columns` there may be more, but their squares take no more room in all.
      if (for_training) layer.probabilities = arena->Take(tokens * heads_ * columns);
      layer.attended = arena->Take(hidden);
      layer.middle = arena->Take(hidden);
      layer.mlp_normed = arena->Take(hidden);
      layer.mlp_mean = arena->Take(tokens);
      layer.mlp_rstd = arena->Take(tokens);
      if (!gpt2()) layer.gate = arena->Take(intermediate);
      layer.up = arena->Take(intermediate);
      layer.activated = arena->Take(intermediate);
    }
    if (!for_training) memory->other_input = arena->Take(hidden);
    memory->last = arena->Take(hidden);
    memory->last_mean = arena->Take(tokens);
    memory->last_rstd = arena->Take(tokens);
    memory->outputs = arena->Take(hidden);
    memory->branch = arena->Take(hidden);
    if (!for_training) return;
    memory->d_outputs = arena->Take(hidden);
    memory->d_residual = arena->Take(hidden);
    memory->d_normed = arena->Take(hidden);
    memory->d_attended = arena->Take(hidden);
    memory->d_qkv = arena->Take(tokens * qkv_size());
    if (!gpt2()) memory->d_gate = arena->Take(intermediate);
    memory->d_up = arena->Take(intermediate);
    memory->d_activated = arena->Take(intermediate);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(memory->arena, Arena::Create(measure.taken()));
  lay_out(&memory->arena);
  return memory;
}

float* Decoder::OutputGradient(Memory* memory) const { return memory->d_outputs; }

// ---- a layer, forward and backward ----

Dropout Decoder::DropoutAt(const Noise& noise, size_t layer, uint64_t place) const {
  if (noise.key == nullptr) return {};
  return {*noise.key, layer * kPlaces + place, dropout_};
}

namespace {

const float* At(const TensorList& tensors, const float* weights, int index) {
  return index < 0 ? nullptr : weights + tensors[index].offset;
}
// Null for a tensor that is not trained.
float* GradientAt(const TensorList& tensors, float* gradients, int index, Trainable trainable) {
  if (index < 0 || (trainable != nullptr && !(*trainable)[static_cast<size_t>(index)])) return nullptr;
  return gradients + tensors[index].offset;
}

}  // namespace

void Decoder::Project(const kernels::Compute& compute, const float* weights, const Layer& layer, const float* normed,
                      int64_t tokens, float* qkv) const {
  const auto project = [&](const LinearTensors& linear, int64_t outputs, float* to) {
    LinearForward(compute, Shape(hidden_size_, outputs), normed, tokens, At(tensors_, weights, linear.weight),
                  At(tensors_, weights, linear.bias), to, qkv_size());
  };
  if (gpt2()) return project(layer.query, 3 * hidden_size_, qkv);
  const int64_t kv_size = kv_heads_ * head_size_;
  project(layer.query, hidden_size_, qkv);
  project(layer.key, kv_size, qkv + hidden_size_);
  project(layer.value, kv_size, qkv + hidden_size_ + kv_size);
}

void Decoder::ForwardMlp(const kernels::Compute& compute, const float* weights, const Layer& layer, int64_t tokens,
                         const LayerMemory& memory, float* output) const {
  const auto wide = [&](const LinearTensors& linear, float* to) {
    LinearForward(compute, Shape(hidden_size_, intermediate_size_), memory.mlp_normed, tokens,
                  At(tensors_, weights, linear.weight), At(tensors_, weights, linear.bias), to, intermediate_size_);
  };
  if (!gpt2()) wide(layer.gate, memory.gate);
  wide(layer.up, memory.up);
  compute.ParallelFor(tokens * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    if (gpt2()) {
      kernels::Gelu(memory.up + begin, memory.activated + begin, end - begin);
    } else {
      kernels::SwiGlu(memory.gate + begin, memory.up + begin, memory.activated + begin, end - begin);
    }
  });
  LinearForward(compute, Shape(intermediate_size_, hidden_size_), memory.activated, tokens,
                At(tensors_, weights, layer.down.weight), At(tensors_, weights, layer.down.bias), output, hidden_size_);
}

void Decoder::ForwardLayer(const kernels::Compute& compute, const float* weights, size_t index,
                           const AttentionShape& shape, const uint32_t* positions, const Noise& noise, bool keep,
                           const LayerMemory& memory, float* branch, float* output) const {
  const Layer& layer = layers_[index];
  const int64_t tokens = shape.tokens(), hidden = tokens * hidden_size_;
  NormForward(compute, norm_kind_, memory.input, At(tensors_, weights, layer.attention_norm.gain),
              At(tensors_, weights, layer.attention_norm.bias), epsilon_, tokens, hidden_size_, memory.normed,
              memory.mean, memory.rstd);
  Project(compute, weights, layer, memory.normed, tokens, memory.qkv);
  float* const q = memory.qkv;
  float* const k = q + hidden_size_;
  float* const v = k + kv_heads_ * head_size_;
  // Queries and keys lie side by side.
  if (!gpt2()) ApplyRope(compute, rope_, tokens, positions, heads_ + kv_heads_, q, shape.stride, false);
  AttentionForward(compute, shape, q, k, v, DropoutAt(noise, index, kAttention), keep, memory.probabilities,
                   memory.attended);
  LinearForward(compute, Shape(hidden_size_, hidden_size_), memory.attended, tokens,
                At(tensors_, weights, layer.attention_output.weight),
                At(tensors_, weights, layer.attention_output.bias), branch, hidden_size_);
  ApplyDropout(compute, DropoutAt(noise, index, kAttentionOutput), hidden, branch);
  AddInto(compute, memory.input, branch, hidden, memory.middle);

  NormForward(compute, norm_kind_, memory.middle, At(tensors_, weights, layer.mlp_norm.gain),
              At(tensors_, weights, layer.mlp_norm.bias), epsilon_, tokens, hidden_size_, memory.mlp_normed,
              memory.mlp_mean, memory.mlp_rstd);
  ForwardMlp(compute, weights, layer, tokens, memory, branch);
  ApplyDropout(compute, DropoutAt(noise, index, kMlpOutput), hidden, branch);
  AddInto(compute, memory.middle, branch, hidden, output);
}

// memory.d_residual: the gradient of the layer's output becomes that of its input, if a tensor below is trained.
// Tensors are numbered in the order of the forward pass: what lies below one has smaller numbers.
void Decoder::BackwardLayer(const kernels::Compute& compute, const float* weights, size_t index,
                            const AttentionShape& shape, const Noise& noise, Trainable trainable,
                            const LayerMemory& kept, const Memory& memory, float* gradients) const {
  const Layer& layer = layers_[index];
  const int64_t tokens = shape.tokens(), hidden = tokens * hidden_size_;
  const int lowest = LowestTrained(trainable);
  const auto gradient_of = [&](int tensor) { return GradientAt(tensors_, gradients, tensor, trainable); };
  const auto backward = [&](const LinearTensors& linear, int64_t inputs, int64_t outputs, const float* x,
                            const float* dy, int64_t dy_stride, float* dx, bool accumulate) {
    LinearBackward(compute, Shape(inputs, outputs), x, tokens, At(tensors_, weights, linear.weight), dy, dy_stride, dx,
                   accumulate, gradient_of(linear.weight), gradient_of(linear.bias));
  };
  const auto norm_backward = [&](const NormTensors& norm, const float* x, const float* mean, const float* rstd) {
    NormBackward(compute, norm_kind_, x, At(tensors_, weights, norm.gain), mean, rstd, memory.d_normed, tokens,
                 hidden_size_, lowest < norm.gain ? memory.d_residual : nullptr, gradient_of(norm.gain),
                 gradient_of(norm.bias));
  };

  // x += down(activation(up(norm(x))))
  Copy(compute, memory.d_residual, hidden, memory.branch);
  ApplyDropout(compute, DropoutAt(noise, index, kMlpOutput), hidden, memory.branch);
  backward(layer.down, intermediate_size_, hidden_size_, kept.activated, memory.branch, hidden_size_,
           lowest < layer.down.weight ? memory.d_activated : nullptr, false);
  if (lowest >= layer.down.weight) return;
  compute.ParallelFor(tokens * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    if (gpt2()) {
      kernels::GeluBackward(kept.up + begin, memory.d_activated + begin, memory.d_up + begin, end - begin);
    } else {
      kernels::SwiGluBackward(kept.gate + begin, kept.up + begin, memory.d_activated + begin, memory.d_gate + begin,
                              memory.d_up + begin, end - begin);
    }
  });
  const int first_of_mlp = gpt2() ? layer.up.weight : layer.gate.weight;
  float* const d_mlp_normed = lowest < first_of_mlp ? memory.d_normed : nullptr;
  backward(layer.up, hidden_size_, intermediate_size_, kept.mlp_normed, memory.d_up, intermediate_size_, d_mlp_normed,
           false);
  if (!gpt2()) {
    backward(layer.gate, hidden_size_, intermediate_size_, kept.mlp_normed, memory.d_gate, intermediate_size_,
             d_mlp_normed, true);
  }
  if (lowest >= first_of_mlp) return;
  norm_backward(layer.mlp_norm, kept.middle, kept.mlp_mean, kept.mlp_rstd);
  if (lowest >= layer.mlp_norm.gain) return;

  // x += proj(attention(norm(x)))
  Copy(compute, memory.d_residual, hidden, memory.branch);
  ApplyDropout(compute, DropoutAt(noise, index, kAttentionOutput), hidden, memory.branch);
  backward(layer.attention_output, hidden_size_, hidden_size_, kept.attended, memory.branch, hidden_size_,
           lowest < layer.attention_output.weight ? memory.d_attended : nullptr, false);
  if (lowest >= layer.attention_output.weight) return;
  const int64_t kv_size = kv_heads_ * head_size_;
  float* const dq = memory.d_qkv;
  float* const dk = dq + hidden_size_;
  float* const dv = dk + kv_size;
  AttentionBackward(compute, shape, kept.qkv, kept.qkv + hidden_size_, kept.qkv + hidden_size_ + kv_size,
                    DropoutAt(noise, index, kAttention), kept.probabilities, memory.d_attended, dq, dk, dv);
  float* const d_normed = lowest < layer.query.weight ? memory.d_normed : nullptr;
  if (gpt2()) {
    backward(layer.query, hidden_size_, 3 * hidden_size_, kept.normed, dq, qkv_size(), d_normed, false);
  } else {
    ApplyRope(compute, rope_, tokens, memory.positions.data(), heads_ + kv_heads_, dq, shape.stride, true);
    backward(layer.query, hidden_size_, hidden_size_, kept.normed, dq, qkv_size(), d_normed, false);
    backward(layer.key, hidden_size_, kv_size, kept.normed, dk, qkv_size(), d_normed, true);
    backward(layer.value, hidden_size_, kv_size, kept.normed, dv, qkv_size(), d_normed, true);
  }
  if (d_normed != nullptr) norm_backward(layer.attention_norm, kept.input, kept.mean, kept.rstd);
}

// ---- the whole ----

int Decoder::LowestTrained(Trainable trainable) const {
  int lowest = 0;
  while (trainable != nullptr && lowest < tensors_.size() && !(*trainable)[static_cast<size_t>(lowest)]) ++lowest;
  return lowest;
}

bool Decoder::NeedsOutputGradient(Trainable trainable) const {
  const int head = score_ >= 0 ? score_ : output_embedding_;
  return LowestTrained(trainable) < (head == input_embedding_ ? tensors_.size() : head);
}

absl::Status Decoder::CheckIds(const TokenMatrix& tokens) const {
  for (int64_t row = 0; row < tokens.rows; ++row) {
    for (int64_t column = 0; column < tokens.columns; ++column) {
      const uint32_t id = tokens.ids[row * tokens.row_stride + column];
      if (id >= vocab_size_) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is not below the vocabulary's ", vocab_size_));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Decoder::TakeSequences(const TokenMatrix& tokens, Memory* memory) const {
  memory->positions.resize(static_cast<size_t>(tokens.tokens()));
  memory->sequences.clear();
  for (int64_t row = 0; row < tokens.rows; ++row) {
    uint32_t start = 0;
    for (int64_t column = 0; column < tokens.columns; ++column) {
      const int64_t token = row * tokens.columns + column;
      if (tokens.starts != nullptr) {
        const uint32_t given = tokens.starts[row * tokens.row_stride + column];
        const bool begins = static_cast<int64_t>(given) == column;
        if (!begins && (column == 0 || given != start)) {
          return absl::InvalidArgumentError(absl::StrCat("row ", row, ", column ", column,
                                                         ": a sequence cannot begin at column ", given,
                                                         " there; that of the token before or ", column, " can"));
        }
        start = given;
        if (begins) memory->sequences.push_back({token, 0});
        ++memory->sequences.back().length;
      }
      memory->positions[static_cast<size_t>(token)] = static_cast<uint32_t>(column) - start;
    }
  }
  return absl::OkStatus();
}

AttentionShape Decoder::ShapeOf(const TokenMatrix& tokens, const Memory& memory) const {
  AttentionShape shape;
  shape.rows = tokens.rows;
  shape.columns = tokens.columns;
  shape.sequences = memory.sequences;
  shape.heads = heads_;
  shape.kv_heads = kv_heads_;
  shape.head_size = head_size_;
  shape.stride = qkv_size();
  shape.precision = precision_;
  return shape;
}

namespace {

Lookup LookupOf(const TokenMatrix& tokens, const std::vector<uint32_t>& positions) {
  return {tokens.ids, tokens.rows, tokens.columns, tokens.row_stride, positions.data()};
}

}  // namespace

absl::StatusOr<const float*> Decoder::Forward(const kernels::Compute& compute, const float* weights,
                                              const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                              Memory* memory) const {
  if (tokens.columns > context_ || tokens.columns > memory->max_columns || tokens.tokens() > memory->capacity ||
      tokens.tokens() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(tokens.rows, " sequences of ", tokens.columns,
                                                   " tokens do not fit a model with context ", context_,
                                                   " and memory for ", memory->capacity, " tokens"));
  }
  MILLRACE_RETURN_IF_ERROR(TakeSequences(tokens, memory));
  const kernels::FlushDenormals flush;
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const int64_t hidden = tokens.tokens() * hidden_size_;
  MILLRACE_RETURN_IF_ERROR(need(0));
  float* x = memory->layers[0].input;
  EmbeddingForward(compute, LookupOf(tokens, memory->positions), At(tensors_, weights, input_embedding_),
                   At(tensors_, weights, position_embedding_), hidden_size_, x);
  ApplyDropout(compute, DropoutAt(noise, 0, kEmbeddings), hidden, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(need(static_cast<uint32_t>(i) + 1));
    LayerMemory layer = memory->layers[memory->for_training ? i : 0];
    layer.input = x;
    float* output = memory->last;
    if (i + 1 < layers_.size()) {
      output = memory->for_training       ? memory->layers[i + 1].input
               : x == memory->other_input ? memory->layers[0].input
                                          : memory->other_input;
    }
    ForwardLayer(compute, weights, i, shape, memory->positions.data(), noise, memory->for_training, layer,
                 memory->branch, output);
    x = output;
  }
  MILLRACE_RETURN_IF_ERROR(need(last_group()));
  NormForward(compute, norm_kind_, x, At(tensors_, weights, last_norm_.gain), At(tensors_, weights, last_norm_.bias),
              epsilon_, tokens.tokens(), hidden_size_, memory->outputs, memory->last_mean, memory->last_rstd);
  return memory->outputs;
}

absl::Status Decoder::Backward(const kernels::Compute& compute, const float* weights, const TokenMatrix& tokens,
                               const Noise& noise, Trainable trainable, float* gradients, GroupHook final,
                               Memory* memory) const {
  const kernels::FlushDenormals flush;
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const int64_t hidden = tokens.tokens() * hidden_size_;
  const int lowest = LowestTrained(trainable);
  const auto gradient_of = [&](int tensor) { return GradientAt(tensors_, gradients, tensor, trainable); };
  if (NeedsOutputGradient(trainable)) {
    std::fill_n(memory->d_residual, hidden, 0.0f);
    NormBackward(compute, norm_kind_, memory->last, At(tensors_, weights, last_norm_.gain), memory->last_mean,
                 memory->last_rstd, memory->d_outputs, tokens.tokens(), hidden_size_,
                 lowest < last_norm_.gain ? memory->d_residual : nullptr, gradient_of(last_norm_.gain),
                 gradient_of(last_norm_.bias));
  }
  MILLRACE_RETURN_IF_ERROR(final(last_group()));
  for (size_t i = layers_.size(); i-- > 0;) {
    const int first_above = i + 1 < layers_.size() ? layers_[i + 1].attention_norm.gain : last_norm_.gain;
    if (lowest < first_above) {
      BackwardLayer(compute, weights, i, shape, noise, trainable, memory->layers[i], *memory, gradients);
    }
    MILLRACE_RETURN_IF_ERROR(final(static_cast<uint32_t>(i) + 1));
  }
  if (lowest < layers_[0].attention_norm.gain) {
    ApplyDropout(compute, DropoutAt(noise, 0, kEmbeddings), hidden, memory->d_residual);
    EmbeddingBackward(compute, LookupOf(tokens, memory->positions), hidden_size_, memory->d_residual,
                      gradient_of(input_embedding_), gradient_of(position_embedding_));
  }
  return final(0);
}

// ---- token by token ----

absl::StatusOr<Decoder::OwnedCache> Decoder::NewCache(int64_t sequences, int64_t columns, int64_t tokens) const {
  OwnedCache cache(new Cache);
  MILLRACE_ASSIGN_OR_RETURN(cache->memory, NewMemory(tokens, columns, /*for_training=*/false));
  const int64_t size = sequences * columns * kv_heads_ * head_size_;
  Arena measure;
  for (size_t i = 0; i < 2 * layers_.size(); ++i) measure.Take(size);
  MILLRACE_ASSIGN_OR_RETURN(cache->arena, Arena::Create(measure.taken()));
  for (size_t i = 0; i < layers_.size(); ++i) {
    cache->keys.push_back(cache->arena.Take(size));
    cache->values.push_back(cache->arena.Take(size));
  }
  cache->columns = columns;
  cache->tokens.assign(static_cast<size_t>(sequences), 0);
  return cache;
}

void Decoder::Clear(Cache* cache) const { std::fill(cache->tokens.begin(), cache->tokens.end(), 0); }

void Decoder::ClearSequence(int64_t sequence, Cache* cache) const { cache->tokens[static_cast<size_t>(sequence)] = 0; }

void Decoder::CopySequence(int64_t from, int64_t to, Cache* cache) const {
  const int64_t kv_size = kv_heads_ * head_size_, stride = cache->columns * kv_size;
  const int64_t tokens = cache->tokens[static_cast<size_t>(from)];
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (float* const memory : {cache->keys[i], cache->values[i]}) {
      std::copy_n(memory + from * stride, tokens * kv_size, memory + to * stride);
    }
  }
  cache->tokens[static_cast<size_t>(to)] = tokens;
}

const float* Decoder::Extend(const kernels::Compute& compute, const float* weights, absl::Span<const Appended> appended,
                             Cache* cache) const {
  const kernels::FlushDenormals flush;
  Memory& memory = *cache->memory;
  const AttentionShape shape = ShapeOf({}, memory);
  const LayerMemory& layer_memory = memory.layers[0];
  cache->ids.clear();
  cache->continuations.clear();
  memory.positions.clear();
  for (const Appended& about : appended) {
    const int64_t past = cache->tokens[static_cast<size_t>(about.sequence)];
    const auto first = static_cast<int64_t>(cache->ids.size()), length = static_cast<int64_t>(about.ids.size());
    cache->continuations.push_back({first, length, past, nullptr, nullptr});
    cache->ids.insert(cache->ids.end(), about.ids.begin(), about.ids.end());
    for (int64_t i = 0; i < length; ++i) memory.positions.push_back(static_cast<uint32_t>(past + i));
    cache->tokens[static_cast<size_t>(about.sequence)] = past + length;
  }
  const auto count = static_cast<int64_t>(cache->ids.size());
  const int64_t kv_size = kv_heads_ * head_size_, hidden = count * hidden_size_;
  float* const x = layer_memory.input;
  EmbeddingForward(compute, {cache->ids.data(), 1, count, count, memory.positions.data()},
                   At(tensors_, weights, input_embedding_), At(tensors_, weights, position_embedding_), hidden_size_,
                   x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    NormForward(compute, norm_kind_, x, At(tensors_, weights, layer.attention_norm.gain),
                At(tensors_, weights, layer.attention_norm.bias), epsilon_, count, hidden_size_, layer_memory.normed,
                layer_memory.mean, layer_memory.rstd);
    float* const q = layer_memory.qkv;
    Project(compute, weights, layer, layer_memory.normed, count, q);
    if (!gpt2()) {
      ApplyRope(compute, rope_, count, memory.positions.data(), heads_ + kv_heads_, q, shape.stride, false);
    }
    for (size_t at = 0; at < appended.size(); ++at) {
      Continuation& about = cache->continuations[at];
      float* const keys = cache->keys[i] + appended[at].sequence * cache->columns * kv_size;
      float* const values = cache->values[i] + appended[at].sequence * cache->columns * kv_size;
      for (int64_t token = 0; token < about.count; ++token) {
        const float* const k = q + (about.first + token) * shape.stride + hidden_size_;
        std::copy_n(k, kv_size, keys + (about.past + token) * kv_size);
        std::copy_n(k + kv_size, kv_size, values + (about.past + token) * kv_size);
      }
      about.keys = keys;
      about.values = values;
    }
    AttentionExtend(compute, shape, q, cache->continuations, layer_memory.attended);
    LinearForward(compute, Shape(hidden_size_, hidden_size_), layer_memory.attended, count,
                  At(tensors_, weights, layer.attention_output.weight),
                  At(tensors_, weights, layer.attention_output.bias), memory.branch, hidden_size_);
    AddInto(compute, x, memory.branch, hidden, layer_memory.middle);
    NormForward(compute, norm_kind_, layer_memory.middle, At(tensors_, weights, layer.mlp_norm.gain),
                At(tensors_, weights, layer.mlp_norm.bias), epsilon_, count, hidden_size_, layer_memory.mlp_normed,
                layer_memory.mlp_mean, layer_memory.mlp_rstd);
    ForwardMlp(compute, weights, layer, count, layer_memory, memory.branch);
    AddInto(compute, layer_memory.middle, memory.branch, hidden, x);
  }
  NormForward(compute, norm_kind_, x, At(tensors_, weights, last_norm_.gain), At(tensors_, weights, last_norm_.bias),
              epsilon_, count, hidden_size_, memory.outputs, memory.last_mean, memory.last_rstd);
  return memory.outputs;
}

}  // namespace millrace::model
