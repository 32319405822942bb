#include "model/families/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "kernels/functions.h"
#include "kernels/rows.h"
#include "model/adapters/attention_prompt.h"
#include "model/adapters/linear_adapter.h"
#include "model/adapters/virtual_tokens.h"
#include "model/families/tensors.h"
#include "model/layers/embedding.h"

namespace millrace::model {
namespace {

constexpr int64_t kGrain = 1 << 13;  // elements
// Where an adapter's dropout is, apart from the decoder's own.
constexpr uint64_t kAdapterDropout = 0x41444150;  // "ADAP"

// Places of dropout in a layer; the embeddings' is that of layer 0.
enum Place : uint64_t { kAttention, kAttentionOutput, kMlpOutput, kEmbeddings, kPlaces };

absl::Status CheckSpec(const v1::ModelSpec& spec) {
  const auto wrong = [](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("model: ", what)); };
  const bool windows = spec.family() == "mistral" || spec.family() == "qwen2";
  if (spec.heads() == 0) return wrong("heads must be at least 1");
  if (spec.heads() > 1024 || spec.intermediate_size() > 1'048'576) return wrong("a size is beyond what is supported");
  if (spec.hidden_size() % spec.heads() != 0) {
    return wrong(absl::StrCat("hidden_size ", spec.hidden_size(), " is not a multiple of heads ", spec.heads()));
  }
  const uint32_t kv_heads = spec.has_kv_heads() ? spec.kv_heads() : spec.heads();
  if (kv_heads == 0 || spec.heads() % kv_heads != 0) {
    return wrong(absl::StrCat("heads ", spec.heads(), " is not a multiple of kv_heads ", kv_heads));
  }
  if (spec.family() == "gpt2" && kv_heads != spec.heads()) return wrong("gpt2 has as many kv_heads as heads");
  if (spec.family() != "gpt2" && spec.hidden_size() / spec.heads() % 2 != 0) {
    return wrong(absl::StrCat(spec.family(), " turns pairs of a head's numbers: hidden_size / heads = ",
                              spec.hidden_size() / spec.heads(), " must be even"));
  }
  if (spec.has_sliding_window() && !windows) {
    return wrong(absl::StrCat(spec.family(), " has no sliding_window; mistral and qwen2 have"));
  }
  if (spec.has_sliding_window() && spec.sliding_window() == 0) return wrong("sliding_window must be at least 1");
  if (spec.intermediate_size() == 0) return wrong("intermediate_size must be at least 1");
  return absl::OkStatus();
}

}  // namespace

struct Decoder::AdapterMemory {
  const Adapter* adapter = nullptr;
  LinearAdapterMemory linear;
  VirtualTokens virtual_tokens;
  // Of attention to prompts, by layer; for training each has its own.
  struct Prompt {
    float* qkv = nullptr;            // [prompt_tokens, qkv]: of the prompt itself
    float* probabilities = nullptr;  // [heads, tokens, prompt_tokens]
    float* attended = nullptr;       // [tokens, hidden]
  };
  std::vector<Prompt> prompts;
  float* d_qkv = nullptr;  // [prompt_tokens, qkv]
  Arena arena;
};

class Decoder::Memory : public Network::Memory {
 public:
  Arena arena;
  bool for_training = false;
  // Of the pass: each token's position, and the sequences of packed rows.
  std::vector<uint32_t> positions;
  std::vector<Sequence> sequences;
  int64_t capacity = 0;  // tokens
  int64_t max_columns = 0;
  int64_t reserved = 0;      // virtual tokens that there is room for
  int64_t virtual_rows = 0;  // of the pass: virtual tokens that go through the layers, before the text
  std::vector<AdapterMemory> adapters;
  float* virtual_probabilities = nullptr;  // by layer, [heads, reserved, reserved]
  std::vector<LayerMemory> layers;         // one if not for training
  float* other_input = nullptr;            // not for training: inputs alternate between two
  float* last = nullptr;                   // [tokens, hidden]: input of the last norm
  float* last_mean = nullptr;              // [tokens]
  float* last_rstd = nullptr;              // [tokens]
  float* outputs = nullptr;                // [tokens, hidden]
  float* branch = nullptr;                 // [tokens, hidden]
  // For training: gradients of …
  float* d_outputs = nullptr;    // [tokens, hidden]
  float* d_residual = nullptr;   // [tokens, hidden]
  float* d_normed = nullptr;     // [tokens, hidden]
  float* d_attended = nullptr;   // [tokens, hidden]
  float* d_qkv = nullptr;        // [tokens, qkv]
  float* d_gate = nullptr;       // [tokens, intermediate]
  float* d_activated = nullptr;  // [tokens, intermediate]; then of what `up` made
};

class Decoder::Cache : public Network::Cache {
 public:
  std::unique_ptr<Memory> memory;
  Arena arena;
  int64_t columns = 0;
  std::vector<float*> keys;  // by layer, [sequences, columns, kv_heads * head_size]
  std::vector<float*> values;
  std::vector<float*> past_keys;  // by layer, [reserved, kv_heads * head_size]: of virtual tokens with embeddings
  std::vector<float*> past_values;
  std::vector<int64_t> tokens;  // by sequence
  // Of an extension, one after another.
  std::vector<uint32_t> ids;
  std::vector<Continuation> continuations;
};

bool IsDecoder(absl::string_view family) {
  return family == "gpt2" || family == "llama" || family == "mistral" || family == "qwen2";
}

absl::StatusOr<std::unique_ptr<Network>> Decoder::Create(const v1::ModelSpec& spec, uint32_t vocab_size, Head head) {
  MILLRACE_RETURN_IF_ERROR(CheckSpec(spec));
  return std::unique_ptr<Network>(new Decoder(spec, vocab_size, head));
}

Decoder::Decoder(const v1::ModelSpec& spec, uint32_t vocab_size, Head head)
    : Network(spec, vocab_size),
      heads_(spec.heads()),
      kv_heads_(spec.has_kv_heads() ? spec.kv_heads() : spec.heads()),
      head_size_(hidden_size_ / heads_),
      intermediate_size_(spec.intermediate_size()),
      context_(spec.context()),
      epsilon_(static_cast<float>(spec.norm_epsilon())),
      dropout_(static_cast<float>(spec.dropout())),
      norm_kind_(spec.family() == "gpt2" ? NormKind::kLayer : NormKind::kRms) {
  AddTensors(head);
  AddSites();
  if (!gpt2()) rope_ = RopeTable(context_, head_size_, spec.rope_theta());
}

// ---- tensors ----

LinearTensors Decoder::AddLinear(const std::string& name, int64_t inputs, int64_t outputs, uint32_t group, bool bias,
                                 bool residual) {
  // Radford et al. 2019, section 2.3: what adds to the residual stream starts smaller by the root of how many do.
  const double std = spec_.init_std() / (residual ? std::sqrt(2.0 * static_cast<double>(spec_.layers())) : 1.0);
  return model::AddLinear(&tensors_, name,
                          {.inputs = inputs, .outputs = outputs, .rows_are_inputs = gpt2(), .bias = bias, .std = std},
                          group);
}

NormTensors Decoder::AddNorm(const std::string& name, uint32_t group) {
  return model::AddNorm(&tensors_, name, hidden_size_, gpt2() && spec_.bias(), group);
}

void Decoder::AddTensors(Head head) {
  const int64_t kv_size = kv_heads_ * head_size_;
  if (gpt2()) {
    input_embedding_ = AddTable("transformer.wte.weight", vocab_size_, 0, spec_.init_std());
    position_embedding_ = AddTable("transformer.wpe.weight", context_, 0, spec_.init_std());
  } else {
    input_embedding_ = AddTable("model.embed_tokens.weight", vocab_size_, 0, spec_.init_std());
  }
  // Biases of all products, of queries, keys and values.
  const bool bias = gpt2() && spec_.bias(), qkv_bias = bias || spec_.family() == "qwen2";
  for (uint32_t i = 0; i < spec_.layers(); ++i) {
    Layer& layer = layers_.emplace_back();
    const uint32_t group = i + 1;
    if (gpt2()) {
      const std::string prefix = absl::StrCat("transformer.h.", i, ".");
      layer.attention_norm = AddNorm(prefix + "ln_1", group);
      layer.query = AddLinear(prefix + "attn.c_attn", hidden_size_, 3 * hidden_size_, group, qkv_bias, false);
      layer.attention_output = AddLinear(prefix + "attn.c_proj", hidden_size_, hidden_size_, group, bias, true);
      layer.mlp_norm = AddNorm(prefix + "ln_2", group);
      layer.up = AddLinear(prefix + "mlp.c_fc", hidden_size_, intermediate_size_, group, bias, false);
      layer.down = AddLinear(prefix + "mlp.c_proj", intermediate_size_, hidden_size_, group, bias, true);
    } else {
      const std::string prefix = absl::StrCat("model.layers.", i, ".");
      layer.attention_norm = AddNorm(prefix + "input_layernorm", group);
      layer.query = AddLinear(prefix + "self_attn.q_proj", hidden_size_, hidden_size_, group, qkv_bias, false);
      layer.key = AddLinear(prefix + "self_attn.k_proj", hidden_size_, kv_size, group, qkv_bias, false);
      layer.value = AddLinear(prefix + "self_attn.v_proj", hidden_size_, kv_size, group, qkv_bias, false);
      layer.attention_output = AddLinear(prefix + "self_attn.o_proj", hidden_size_, hidden_size_, group, bias, true);
      layer.mlp_norm = AddNorm(prefix + "post_attention_layernorm", group);
      layer.gate = AddLinear(prefix + "mlp.gate_proj", hidden_size_, intermediate_size_, group, bias, false);
      layer.up = AddLinear(prefix + "mlp.up_proj", hidden_size_, intermediate_size_, group, bias, false);
      layer.down = AddLinear(prefix + "mlp.down_proj", intermediate_size_, hidden_size_, group, bias, true);
    }
  }
  last_norm_ = AddNorm(gpt2() ? "transformer.ln_f" : "model.norm", last_group());
  AddHead(head);
}

const LinearTensors& Decoder::TensorsOf(const Layer& layer, Module module) {
  switch (module) {
    case Module::kQuery:
      return layer.query;
    case Module::kKey:
      return layer.key;
    case Module::kValue:
      return layer.value;
    case Module::kAttentionOutput:
      return layer.attention_output;
    case Module::kGate:
      return layer.gate;
    case Module::kUp:
      return layer.up;
    case Module::kDown:
      return layer.down;
  }
  return layer.query;
}

void Decoder::AddSites() {
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (size_t module = 0; module < kModules; ++module) {
      const LinearTensors& tensors = TensorsOf(layers_[i], static_cast<Module>(module));
      if (tensors.weight < 0) continue;
      const TensorSpec& tensor = tensors_[tensors.weight];
      LinearSite site;
      site.tensors = tensors;
      site.layer = i;
      site.module = static_cast<Module>(module);
      site.path = std::string(absl::StripSuffix(tensor.name, ".weight"));
      site.inputs = tensor.shape[tensor.rows_are_inputs ? 0 : 1];
      site.outputs = tensor.shape[tensor.rows_are_inputs ? 1 : 0];
      sites_.push_back(std::move(site));
    }
  }
}

// ---- memory ----

absl::StatusOr<std::unique_ptr<Decoder::Memory>> Decoder::MakeMemory(int64_t tokens, int64_t columns,
                                                                     bool for_training) const {
  auto memory = std::make_unique<Memory>();
  memory->for_training = for_training;
  memory->capacity = tokens;
  memory->max_columns = columns;
  memory->reserved = reserved_;
  const auto lay_out = [&](Arena* arena) {
    const int64_t rows = reserved_ + tokens, hidden = rows * hidden_size_, intermediate = rows * intermediate_size_;
    memory->layers.assign(for_training ? layers_.size() : 1, {});
    for (LayerMemory& layer : memory->layers) {
      layer.input = arena->Take(hidden);
      layer.normed = arena->Take(hidden);
      layer.mean = arena->Take(rows);
      layer.rstd = arena->Take(rows);
      layer.qkv = arena->Take(rows * qkv_size());
      // Of a sequence shorter than `columns` there may be more, but their squares take no more room in all.
      if (for_training) layer.probabilities = arena->Take(tokens * heads_ * (reserved_ + columns));
      layer.attended = arena->Take(hidden);
      layer.middle = arena->Take(hidden);
      layer.mlp_normed = arena->Take(hidden);
      layer.mlp_mean = arena->Take(rows);
      layer.mlp_rstd = arena->Take(rows);
      if (!gpt2()) layer.gate = arena->Take(intermediate);
      layer.up = arena->Take(intermediate);
      layer.activated = arena->Take(intermediate);
    }
    if (!for_training) memory->other_input = arena->Take(hidden);
    if (for_training) {
      memory->virtual_probabilities =
          arena->Take(static_cast<int64_t>(layers_.size()) * heads_ * reserved_ * reserved_);
    }
    memory->last = arena->Take(hidden);
    memory->last_mean = arena->Take(rows);
    memory->last_rstd = arena->Take(rows);
    memory->outputs = arena->Take(hidden);
    memory->branch = arena->Take(hidden);
    if (!for_training) return;
    memory->d_outputs = arena->Take(hidden);
    memory->d_residual = arena->Take(hidden);
    memory->d_normed = arena->Take(hidden);
    memory->d_attended = arena->Take(hidden);
    memory->d_qkv = arena->Take(rows * qkv_size());
    if (!gpt2()) memory->d_gate = arena->Take(intermediate);
    memory->d_activated = arena->Take(intermediate);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(memory->arena, Arena::Create(measure.taken()));
  lay_out(&memory->arena);
  return memory;
}

absl::StatusOr<Network::OwnedMemory> Decoder::NewMemory(int64_t tokens, int64_t columns, bool for_training) const {
  return MakeMemory(tokens, columns, for_training);
}

float* Decoder::OutputGradient(Network::Memory* memory) const {
  const Memory& own = static_cast<const Memory&>(*memory);
  return own.d_outputs + own.virtual_rows * hidden_size_;
}

absl::Status Decoder::TakeAdapters(const NetworkWeights& weights, Memory* memory) const {
  if (weights.virtual_tokens() > memory->reserved) {
    return absl::InvalidArgumentError(
        absl::StrCat("an adapter with ", weights.virtual_tokens(), " virtual tokens in memory for ", memory->reserved));
  }
  const auto same = [&](const ActiveAdapter& active, const AdapterMemory& kept) {
    return active.adapter == kept.adapter;
  };
  if (std::equal(weights.adapters.begin(), weights.adapters.end(), memory->adapters.begin(), memory->adapters.end(),
                 same)) {
    return absl::OkStatus();
  }
  memory->adapters.clear();
  const int64_t rows = memory->reserved + memory->capacity;
  for (const ActiveAdapter& active : weights.adapters) {
    const Adapter& adapter = *active.adapter;
    AdapterMemory made;
    made.adapter = &adapter;
    MILLRACE_ASSIGN_OR_RETURN(made.linear, LinearAdapterMemory::Create(adapter, sites_, rows, memory->for_training));
    if (adapter.virtual_tokens() > 0) {
      MILLRACE_ASSIGN_OR_RETURN(made.virtual_tokens, VirtualTokens::Create(&adapter, memory->for_training));
    }
    const int64_t prompt = adapter.prompt_tokens();
    const auto lay_out = [&](Arena* arena) {
      made.prompts.assign(memory->for_training ? layers_.size() : 1, {});
      for (AdapterMemory::Prompt& kept : made.prompts) {
        kept.qkv = arena->Take(prompt * qkv_size());
        kept.probabilities = arena->Take(heads_ * rows * prompt);
        kept.attended = arena->Take(rows * hidden_size_);
      }
      if (memory->for_training) made.d_qkv = arena->Take(prompt * qkv_size());
    };
    if (prompt > 0) {
      Arena measure;
      lay_out(&measure);
      MILLRACE_ASSIGN_OR_RETURN(made.arena, Arena::Create(measure.taken()));
      lay_out(&made.arena);
    }
    memory->adapters.push_back(std::move(made));
  }
  return absl::OkStatus();
}

// ---- a layer, forward and backward ----

Dropout Decoder::DropoutAt(const Noise& noise, size_t layer, uint64_t place) const {
  if (noise.key == nullptr) return {};
  return {*noise.key, layer * kPlaces + place, dropout_};
}

namespace {

// Tokens before all others, on their own.
AttentionShape Alone(const AttentionShape& shape, int64_t tokens) {
  AttentionShape alone = shape;
  alone.rows = 1;
  alone.columns = tokens;
  alone.sequences = {};
  return alone;
}

}  // namespace

Linear Decoder::LinearOf(const LinearTensors& tensors) const {
  const std::vector<int64_t>& shape = tensors_[tensors.weight].shape;
  return {shape[gpt2() ? 0 : 1], shape[gpt2() ? 1 : 0], gpt2(), precision_};
}

float* Decoder::VirtualProbabilities(const Memory& memory, size_t layer) const {
  return memory.for_training
             ? memory.virtual_probabilities + static_cast<int64_t>(layer) * heads_ * memory.reserved * memory.reserved
             : nullptr;
}

void Decoder::ApplyLinear(const Pass& pass, size_t index, Module module, const float* x, int64_t rows, float* y,
                          int64_t y_stride) const {
  const LinearTensors& tensors = TensorsOf(layers_[index], module);
  const Linear linear = LinearOf(tensors);
  const float* const weight = TensorAt(tensors_, pass.weights.base, tensors.weight);
  const float* const bias = TensorAt(tensors_, pass.weights.base, tensors.bias);
  // A later adapter is around the earlier ones: what they read it has scaled.
  absl::InlinedVector<const float*, 4> inputs(pass.weights.adapters.size());
  const float* input = x;
  bool adds_bias = false;
  for (size_t i = pass.weights.adapters.size(); i-- > 0;) {
    inputs[i] = input;
    const Adapter::AtLinear& at = pass.weights.adapters[i].adapter->at(index, module);
    if (!at.any()) continue;
    adds_bias = adds_bias || AddsBias(at);
    input = AdaptedInput(pass.compute, AdapterAt(pass, i, index, module), linear, input, rows);
  }
  LinearForward(pass.compute, linear, input, rows, weight, adds_bias ? nullptr : bias, y, y_stride);
  for (size_t i = 0; i < pass.weights.adapters.size(); ++i) {
    if (!pass.weights.adapters[i].adapter->at(index, module).any()) continue;
    AdaptOutput(pass.compute, AdapterAt(pass, i, index, module), linear, inputs[i], rows, weight, bias, y, y_stride);
  }
}

// dx (null: not wanted) = the gradient of x, or += if `accumulate`; dy is destroyed. With an adapter there is one.
void Decoder::LinearGradients(const Pass& pass, size_t index, Module module, Trainable trainable, const float* x,
                              int64_t rows, float* dy, int64_t dy_stride, float* dx, bool accumulate,
                              float* gradients) const {
  const LinearTensors& tensors = TensorsOf(layers_[index], module);
  const Linear linear = LinearOf(tensors);
  const auto backward = [&](float* to, bool add) {
    LinearBackward(pass.compute, linear, x, rows, TensorAt(tensors_, pass.weights.base, tensors.weight), dy, dy_stride,
                   to, add, GradientAt(tensors_, gradients, tensors.weight, trainable),
                   GradientAt(tensors_, gradients, tensors.bias, trainable));
  };
  const bool adapted = !pass.weights.adapters.empty() && pass.weights.adapters[0].adapter->at(index, module).any();
  if (!adapted) return backward(dx, accumulate);
  const LinearAdapterPass adapter = AdapterAt(pass, 0, index, module);
  float* const of_adapter = gradients + tensors_.floats();
  AdaptedOutputBackward(pass.compute, adapter, linear, x, rows, dy, dy_stride, of_adapter);
  if (adapter.at.of_inputs) {
    backward(adapter.memory.input(), false);
  } else {
    backward(dx, accumulate);
  }
  AdaptedInputBackward(pass.compute, adapter, linear, x, rows, dx, accumulate, of_adapter);
}

LinearAdapterPass Decoder::AdapterAt(const Pass& pass, size_t adapter, size_t index, Module module) const {
  const ActiveAdapter& active = pass.weights.adapters[adapter];
  const LinearAdapterMemory& memory = pass.memory.adapters[adapter].linear;
  Dropout dropout;
  if (pass.noise.key != nullptr) {
    dropout = {pass.noise.key->Derive(kAdapterDropout), index * kModules + static_cast<size_t>(module),
               active.adapter->dropout()};
  }
  return {*active.adapter, active.adapter->at(index, module), active.weights, memory, memory.at(index, module), dropout,
          pass.ready};
}

void Decoder::Project(const Pass& pass, size_t index, const float* normed, int64_t rows, float* qkv) const {
  ApplyLinear(pass, index, Module::kQuery, normed, rows, qkv, qkv_size());
  if (gpt2()) return;
  ApplyLinear(pass, index, Module::kKey, normed, rows, qkv + hidden_size_, qkv_size());
  ApplyLinear(pass, index, Module::kValue, normed, rows, qkv + hidden_size_ + kv_size(), qkv_size());
}

void Decoder::ForwardMlp(const Pass& pass, size_t index, int64_t rows, const LayerMemory& memory, float* output) const {
  if (!gpt2()) ApplyLinear(pass, index, Module::kGate, memory.mlp_normed, rows, memory.gate, intermediate_size_);
  ApplyLinear(pass, index, Module::kUp, memory.mlp_normed, rows, memory.up, intermediate_size_);
  pass.compute.ParallelFor(rows * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    if (gpt2()) {
      kernels::Gelu(pass.compute.isa(), memory.up + begin, memory.activated + begin, end - begin);
    } else {
      kernels::SwiGlu(pass.compute.isa(), memory.gate + begin, memory.up + begin, memory.activated + begin,
                      end - begin);
    }
  });
  ApplyLinear(pass, index, Module::kDown, memory.activated, rows, output, hidden_size_);
}

Past Decoder::PastOf(const Pass& pass, size_t index, const float* qkv) const {
  for (size_t i = 0; i < pass.weights.adapters.size(); ++i) {
    const Adapter& adapter = *pass.weights.adapters[i].adapter;
    if (adapter.virtual_tokens() == 0) continue;
    if (adapter.virtual_embeddings()) {
      const float* const keys = qkv + hidden_size_;
      return {adapter.virtual_tokens(), keys, keys + kv_size(), qkv_size()};
    }
    const float* const keys =
        pass.memory.adapters[i].virtual_tokens.values() + 2 * static_cast<int64_t>(index) * kv_size();
    return {adapter.virtual_tokens(), keys, keys + kv_size(), adapter.virtual_width()};
  }
  return {};
}

void Decoder::AttendToPrompt(const Pass& pass, size_t index, const AttentionShape& shape, const float* q,
                             int64_t tokens, float* out) const {
  for (size_t i = 0; i < pass.weights.adapters.size(); ++i) {
    const ActiveAdapter& active = pass.weights.adapters[i];
    const Adapter::AtAttention& at = active.adapter->at_attention(index);
    if (at.prompt < 0) continue;
    AdapterMemory& memory = pass.memory.adapters[i];
    const AdapterMemory::Prompt& kept = memory.prompts[pass.memory.for_training ? index : 0];
    const TensorList& tensors = active.adapter->tensors();
    const int64_t length = active.adapter->prompt_tokens();
    Project({pass.compute, pass.weights.base, {}, pass.memory}, index, active.weights + tensors[at.prompt].offset,
            length, kept.qkv);
    const float* const keys = kept.qkv + hidden_size_;
    AttentionPromptForward(pass.compute, shape,
                           {q, tokens, keys, keys + kv_size(), length, active.weights[tensors[at.gate].offset]},
                           kept.probabilities, kept.attended, out);
  }
}

void Decoder::PromptGradients(const Pass& pass, size_t index, const AttentionShape& shape, const float* q,
                              int64_t tokens, const float* dout, float* dq, float* gradients) const {
  if (pass.weights.adapters.empty()) return;
  const ActiveAdapter& active = pass.weights.adapters[0];
  const Adapter::AtAttention& at = active.adapter->at_attention(index);
  if (at.prompt < 0) return;
  AdapterMemory& memory = pass.memory.adapters[0];
  const AdapterMemory::Prompt& kept = memory.prompts[index];
  const TensorList& tensors = active.adapter->tensors();
  const int64_t length = active.adapter->prompt_tokens();
  float* const of_adapter = gradients + tensors_.floats();
  const float* const keys = kept.qkv + hidden_size_;
  std::fill_n(memory.d_qkv, length * qkv_size(), 0.0f);
  float* const dk = memory.d_qkv + hidden_size_;
  AttentionPromptBackward(
      pass.compute, shape, {q, tokens, keys, keys + kv_size(), length, active.weights[tensors[at.gate].offset]},
      kept.probabilities, kept.attended, dout, dq, dk, dk + kv_size(), of_adapter + tensors[at.gate].offset);
  float* const d_prompt = of_adapter + tensors[at.prompt].offset;
  const auto back = [&](Module module, const float* dy) {
    const LinearTensors& linear = TensorsOf(layers_[index], module);
    LinearBackward(pass.compute, LinearOf(linear), nullptr, length,
                   TensorAt(tensors_, pass.weights.base, linear.weight), dy, qkv_size(), d_prompt, /*accumulate=*/true,
                   nullptr, nullptr);
  };
  if (gpt2()) return back(Module::kQuery, memory.d_qkv);
  back(Module::kKey, dk);
  back(Module::kValue, dk + kv_size());
}

void Decoder::ForwardLayer(const Pass& pass, size_t index, const AttentionShape& shape, bool keep,
                           const LayerMemory& memory, float* output) const {
  const kernels::Compute& compute = pass.compute;
  const Layer& layer = layers_[index];
  const float* const weights = pass.weights.base;
  // Virtual tokens, if they go through the layers, come first.
  const int64_t before = pass.memory.virtual_rows, rows = before + shape.tokens(), hidden = rows * hidden_size_;
  float* const branch = pass.memory.branch;
  NormForward(compute, norm_kind_, memory.input, TensorAt(tensors_, weights, layer.attention_norm.gain),
              TensorAt(tensors_, weights, layer.attention_norm.bias), epsilon_, rows, hidden_size_, memory.normed,
              memory.mean, memory.rstd);
  Project(pass, index, memory.normed, rows, memory.qkv);
  // Queries and keys lie side by side.
  if (!gpt2()) {
    ApplyRope(compute, rope_, rows, pass.memory.positions.data(), heads_ + kv_heads_, memory.qkv, shape.stride, false);
  }
  if (before > 0) {
    AttentionForward(compute, Alone(shape, before), memory.qkv, memory.qkv + hidden_size_,
                     memory.qkv + hidden_size_ + kv_size(), DropoutAt(pass.noise, layers_.size() + index, kAttention),
                     keep, VirtualProbabilities(pass.memory, index), memory.attended);
  }
  AttentionShape text = shape;
  text.past = PastOf(pass, index, memory.qkv);
  const float* const q = memory.qkv + before * qkv_size();
  AttentionForward(compute, text, q, q + hidden_size_, q + hidden_size_ + kv_size(),
                   DropoutAt(pass.noise, index, kAttention), keep, memory.probabilities,
                   memory.attended + before * hidden_size_);
  if (!gpt2()) AttendToPrompt(pass, index, shape, q, shape.tokens(), memory.attended);
  ApplyLinear(pass, index, Module::kAttentionOutput, memory.attended, rows, branch, hidden_size_);
  if (gpt2()) AttendToPrompt(pass, index, shape, q, shape.tokens(), branch);
  ApplyDropout(compute, DropoutAt(pass.noise, index, kAttentionOutput), hidden, branch);
  kernels::Add(compute, memory.input, branch, hidden, memory.middle);

  NormForward(compute, norm_kind_, memory.middle, TensorAt(tensors_, weights, layer.mlp_norm.gain),
              TensorAt(tensors_, weights, layer.mlp_norm.bias), epsilon_, rows, hidden_size_, memory.mlp_normed,
              memory.mlp_mean, memory.mlp_rstd);
  ForwardMlp(pass, index, rows, memory, branch);
  ApplyDropout(compute, DropoutAt(pass.noise, index, kMlpOutput), hidden, branch);
  kernels::Add(compute, memory.middle, branch, hidden, output);
}

// memory.d_residual: the gradient of the layer's output becomes that of its input, if a tensor below is trained.
// Tensors are numbered in the order of the forward pass: what lies below one has smaller numbers.
void Decoder::BackwardLayer(const Pass& pass, size_t index, const AttentionShape& shape, Trainable trainable,
                            const LayerMemory& kept, float* gradients) const {
  const kernels::Compute& compute = pass.compute;
  const Memory& memory = pass.memory;
  const Layer& layer = layers_[index];
  const int64_t before = memory.virtual_rows, rows = before + shape.tokens(), hidden = rows * hidden_size_;
  const int lowest = LowestTrained(pass.weights, trainable);
  const auto backward = [&](Module module, const float* x, float* dy, int64_t dy_stride, float* dx, bool accumulate) {
    LinearGradients(pass, index, module, trainable, x, rows, dy, dy_stride, dx, accumulate, gradients);
  };
  const auto norm_backward = [&](const NormTensors& norm, const float* x, const float* mean, const float* rstd) {
    NormBackward(compute, norm_kind_, x, TensorAt(tensors_, pass.weights.base, norm.gain), mean, rstd, memory.d_normed,
                 rows, hidden_size_, lowest < norm.gain ? memory.d_residual : nullptr,
                 GradientAt(tensors_, gradients, norm.gain, trainable),
                 GradientAt(tensors_, gradients, norm.bias, trainable));
  };

  // Of what a branch made, before its dropout. A copy where it will be changed: by dropout, or by adapters.
  const auto d_branch = [&](Place place) {
    const Dropout dropout = DropoutAt(pass.noise, index, place);
    if (dropout.rate == 0.0f && pass.weights.adapters.empty()) return memory.d_residual;
    kernels::Copy(compute, memory.d_residual, hidden, memory.branch);
    ApplyDropout(compute, dropout, hidden, memory.branch);
    return memory.branch;
  };

  // x += down(activation(up(norm(x))))
  backward(Module::kDown, kept.activated, d_branch(kMlpOutput), hidden_size_,
           lowest < layer.down.weight ? memory.d_activated : nullptr, false);
  if (lowest >= layer.down.weight) return;
  compute.ParallelFor(rows * intermediate_size_, kGrain, [&](int64_t begin, int64_t end) {
    if (gpt2()) {
      kernels::GeluBackward(compute.isa(), kept.up + begin, memory.d_activated + begin, memory.d_activated + begin,
                            end - begin);
    } else {
      kernels::SwiGluBackward(compute.isa(), kept.gate + begin, kept.up + begin, memory.d_activated + begin,
                              memory.d_gate + begin, memory.d_activated + begin, end - begin);
    }
  });
  const int first_of_mlp = gpt2() ? layer.up.weight : layer.gate.weight;
  float* const d_mlp_normed = lowest < first_of_mlp ? memory.d_normed : nullptr;
  backward(Module::kUp, kept.mlp_normed, memory.d_activated, intermediate_size_, d_mlp_normed, false);
  if (!gpt2()) backward(Module::kGate, kept.mlp_normed, memory.d_gate, intermediate_size_, d_mlp_normed, true);
  if (lowest >= first_of_mlp) return;
  norm_backward(layer.mlp_norm, kept.middle, kept.mlp_mean, kept.mlp_rstd);
  if (lowest >= layer.mlp_norm.gain) return;

  // x += proj(attention(norm(x)))
  float* const d_attention = d_branch(kAttentionOutput);
  // GPT-2's attention to a prompt stands beside the projection, which destroys its output's gradient.
  const bool prompted = !pass.weights.adapters.empty() && pass.weights.adapters[0].adapter->prompt_tokens() > 0;
  float* const d_beside = memory.d_activated;
  if (gpt2() && prompted) kernels::Copy(compute, d_attention, hidden, d_beside);
  backward(Module::kAttentionOutput, kept.attended, d_attention, hidden_size_,
           lowest < layer.attention_output.weight ? memory.d_attended : nullptr, false);
  if (lowest >= layer.attention_output.weight) return;
  float* const dq = memory.d_qkv + before * qkv_size();
  const float* const q = kept.qkv + before * qkv_size();
  if (before > 0) {
    AttentionBackward(compute, Alone(shape, before), kept.qkv, kept.qkv + hidden_size_,
                      kept.qkv + hidden_size_ + kv_size(), DropoutAt(pass.noise, layers_.size() + index, kAttention),
                      VirtualProbabilities(memory, index), memory.d_attended, memory.d_qkv, memory.d_qkv + hidden_size_,
                      memory.d_qkv + hidden_size_ + kv_size());
  }
  AttentionShape text = shape;
  text.past = PastOf(pass, index, kept.qkv);
  float* d_past = nullptr;
  if (before > 0) {
    d_past = memory.d_qkv + hidden_size_;
  } else if (text.past.tokens > 0) {
    d_past = memory.adapters[0].virtual_tokens.d_values() + 2 * static_cast<int64_t>(index) * kv_size();
  }
  AttentionBackward(compute, text, q, q + hidden_size_, q + hidden_size_ + kv_size(),
                    DropoutAt(pass.noise, index, kAttention), kept.probabilities,
                    memory.d_attended + before * hidden_size_, dq, dq + hidden_size_, dq + hidden_size_ + kv_size(),
                    d_past, d_past == nullptr ? nullptr : d_past + kv_size());
  PromptGradients(pass, index, shape, q, shape.tokens(), gpt2() ? d_beside : memory.d_attended, dq, gradients);
  float* const d_normed = lowest < layer.query.weight ? memory.d_normed : nullptr;
  if (!gpt2()) {
    ApplyRope(compute, rope_, rows, memory.positions.data(), heads_ + kv_heads_, memory.d_qkv, shape.stride, true);
  }
  backward(Module::kQuery, kept.normed, memory.d_qkv, qkv_size(), d_normed, false);
  if (!gpt2()) {
    backward(Module::kKey, kept.normed, memory.d_qkv + hidden_size_, qkv_size(), d_normed, true);
    backward(Module::kValue, kept.normed, memory.d_qkv + hidden_size_ + kv_size(), qkv_size(), d_normed, true);
  }
  if (d_normed != nullptr) norm_backward(layer.attention_norm, kept.input, kept.mean, kept.rstd);
}

// ---- the whole ----

int Decoder::LowestTrained(const NetworkWeights& weights, Trainable trainable) const {
  const int lowest = Network::LowestTrained(weights, trainable);
  if (weights.adapters.empty()) return lowest;
  const Adapter& adapter = *weights.adapters[0].adapter;
  if (adapter.virtual_tokens() > 0) {
    return std::min(lowest, adapter.virtual_embeddings() ? 0 : layers_[0].query.weight);
  }
  for (const LinearSite& site : sites_) {
    if (adapter.at(site.layer, site.module).any()) return std::min(lowest, site.tensors.weight);
    if (adapter.at_attention(site.layer).prompt >= 0) return std::min(lowest, layers_[site.layer].query.weight);
  }
  return lowest;
}

absl::Status Decoder::TakeSequences(const TokenMatrix& tokens, int64_t first, Memory* memory) const {
  MILLRACE_ASSIGN_OR_RETURN(memory->sequences, SequencesOf(tokens));
  const int64_t before = memory->virtual_rows;
  memory->positions.resize(static_cast<size_t>(before + tokens.tokens()));
  for (int64_t i = 0; i < before; ++i) memory->positions[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
  for (int64_t row = 0; row < tokens.rows; ++row) {
    for (int64_t column = 0; column < tokens.columns; ++column) {
      const uint32_t start = tokens.starts == nullptr ? 0 : tokens.starts[row * tokens.row_stride + column];
      memory->positions[static_cast<size_t>(before + row * tokens.columns + column)] =
          static_cast<uint32_t>(first + column) - start;
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
  shape.window = spec_.sliding_window();
  shape.precision = precision_;
  return shape;
}

namespace {

Lookup LookupOf(const TokenMatrix& tokens, const uint32_t* positions) {
  return {tokens.ids, tokens.rows, tokens.columns, tokens.row_stride, positions};
}

}  // namespace

// Virtual tokens become the first rows: their embeddings, and positions where these are learnt.
void Decoder::EmbedVirtualTokens(const Pass& pass, float* x) const {
  for (size_t i = 0; i < pass.weights.adapters.size(); ++i) {
    const Adapter& adapter = *pass.weights.adapters[i].adapter;
    if (!adapter.virtual_embeddings()) continue;
    const int64_t size = adapter.virtual_tokens() * hidden_size_;
    std::copy_n(pass.memory.adapters[i].virtual_tokens.values(), size, x);
    if (position_embedding_ >= 0)
      kernels::Add(pass.compute, TensorAt(tensors_, pass.weights.base, position_embedding_), size, x);
  }
}

int64_t Decoder::BeginPass(const Pass& pass) const {
  pass.memory.virtual_rows = 0;
  for (size_t i = 0; i < pass.weights.adapters.size(); ++i) {
    const ActiveAdapter& active = pass.weights.adapters[i];
    if (active.adapter->virtual_tokens() == 0) continue;
    pass.memory.adapters[i].virtual_tokens.Forward(pass.compute, active.weights);
    if (active.adapter->virtual_embeddings()) pass.memory.virtual_rows = active.adapter->virtual_tokens();
  }
  return pass.weights.virtual_tokens();
}

absl::StatusOr<const float*> Decoder::Forward(const kernels::Compute& compute, const NetworkWeights& weights,
                                              const TokenMatrix& tokens, const Noise& noise, GroupHook need,
                                              Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  MILLRACE_RETURN_IF_ERROR(CheckRoom(weights, tokens, memory->capacity, memory->max_columns));
  MILLRACE_RETURN_IF_ERROR(TakeAdapters(weights, memory));
  const kernels::FlushDenormals flush;
  const Pass pass = {compute, weights, noise, *memory};
  MILLRACE_RETURN_IF_ERROR(need(0));
  MILLRACE_RETURN_IF_ERROR(TakeSequences(tokens, BeginPass(pass), memory));
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const int64_t before = memory->virtual_rows, rows = before + tokens.tokens(), hidden = rows * hidden_size_;
  float* x = memory->layers[0].input;
  EmbeddingForward(compute, LookupOf(tokens, memory->positions.data() + before),
                   TensorAt(tensors_, weights.base, input_embedding_),
                   TensorAt(tensors_, weights.base, position_embedding_), hidden_size_, x + before * hidden_size_);
  EmbedVirtualTokens(pass, x);
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
    ForwardLayer(pass, i, shape, memory->for_training, layer, output);
    x = output;
  }
  MILLRACE_RETURN_IF_ERROR(need(last_group()));
  NormForward(compute, norm_kind_, x, TensorAt(tensors_, weights.base, last_norm_.gain),
              TensorAt(tensors_, weights.base, last_norm_.bias), epsilon_, rows, hidden_size_, memory->outputs,
              memory->last_mean, memory->last_rstd);
  return memory->outputs + before * hidden_size_;
}

absl::Status Decoder::Backward(const kernels::Compute& compute, const NetworkWeights& weights,
                               const TokenMatrix& tokens, const Noise& noise, Trainable trainable, float* gradients,
                               GroupHook final, Network::Memory* given) const {
  Memory* const memory = static_cast<Memory*>(given);
  if (weights.adapters.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(weights.adapters.size(), " adapters cannot be trained at once"));
  }
  const kernels::FlushDenormals flush;
  const Pass pass = {compute, weights, noise, *memory};
  const AttentionShape shape = ShapeOf(tokens, *memory);
  const int64_t before = memory->virtual_rows, rows = before + tokens.tokens(), hidden = rows * hidden_size_;
  const int lowest = LowestTrained(weights, trainable);
  const auto gradient_of = [&](int tensor) { return GradientAt(tensors_, gradients, tensor, trainable); };
  if (NeedsOutputGradient(weights, trainable)) {
    std::fill_n(memory->d_residual, hidden, 0.0f);
    // Nothing is predicted from virtual tokens.
    std::fill_n(memory->d_outputs, before * hidden_size_, 0.0f);
    NormBackward(compute, norm_kind_, memory->last, TensorAt(tensors_, weights.base, last_norm_.gain),
                 memory->last_mean, memory->last_rstd, memory->d_outputs, rows, hidden_size_,
                 lowest < last_norm_.gain ? memory->d_residual : nullptr, gradient_of(last_norm_.gain),
                 gradient_of(last_norm_.bias));
  }
  MILLRACE_RETURN_IF_ERROR(final(last_group()));
  for (size_t i = layers_.size(); i-- > 0;) {
    const int first_above = i + 1 < layers_.size() ? layers_[i + 1].attention_norm.gain : last_norm_.gain;
    if (lowest < first_above) BackwardLayer(pass, i, shape, trainable, memory->layers[i], gradients);
    MILLRACE_RETURN_IF_ERROR(final(static_cast<uint32_t>(i) + 1));
  }
  if (lowest < layers_[0].attention_norm.gain) {
    ApplyDropout(compute, DropoutAt(noise, 0, kEmbeddings), hidden, memory->d_residual);
    EmbeddingBackward(compute, LookupOf(tokens, memory->positions.data() + before), hidden_size_,
                      memory->d_residual + before * hidden_size_, gradient_of(input_embedding_),
                      gradient_of(position_embedding_));
  }
  if (weights.virtual_tokens() > 0) {
    VirtualTokens& virtual_tokens = memory->adapters[0].virtual_tokens;
    if (before > 0) std::copy_n(memory->d_residual, before * hidden_size_, virtual_tokens.d_values());
    virtual_tokens.Backward(compute, weights.adapters[0].weights, gradients + tensors_.floats());
  }
  return final(0);
}

// ---- token by token ----

absl::StatusOr<Network::OwnedCache> Decoder::NewCache(int64_t sequences, int64_t columns, int64_t tokens) const {
  auto cache = std::make_unique<Cache>();
  MILLRACE_ASSIGN_OR_RETURN(cache->memory, MakeMemory(tokens, columns, /*for_training=*/false));
  const int64_t size = sequences * columns * kv_size(), past = reserved_ * kv_size();
  const auto lay_out = [&](Arena* arena) {
    for (std::vector<float*>* memory : {&cache->keys, &cache->values}) {
      memory->clear();
      for (size_t i = 0; i < layers_.size(); ++i) memory->push_back(arena->Take(size));
    }
    for (std::vector<float*>* memory : {&cache->past_keys, &cache->past_values}) {
      memory->clear();
      for (size_t i = 0; i < layers_.size(); ++i) memory->push_back(arena->Take(past));
    }
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(cache->arena, Arena::Create(measure.taken()));
  lay_out(&cache->arena);
  cache->columns = columns;
  cache->tokens.assign(static_cast<size_t>(sequences), 0);
  return cache;
}

uint64_t Decoder::SequenceBytes() const {
  return 2 * sizeof(float) * layers_.size() * static_cast<uint64_t>(context_ * kv_size());
}

absl::Status Decoder::Begin(const kernels::Compute& compute, const NetworkWeights& weights,
                            Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  std::fill(cache->tokens.begin(), cache->tokens.end(), 0);
  Memory& memory = *cache->memory;
  if (cache->columns + weights.virtual_tokens() > context_) {
    return absl::InvalidArgumentError(absl::StrCat("sequences of ", cache->columns, " tokens behind ",
                                                   weights.virtual_tokens(), " virtual ones do not fit a context of ",
                                                   context_));
  }
  MILLRACE_RETURN_IF_ERROR(TakeAdapters(weights, &memory));
  if (weights.adapters.empty()) return absl::OkStatus();
  const kernels::FlushDenormals flush;
  const Pass pass = {compute, weights, {}, memory};
  for (size_t i = 0; i < weights.adapters.size(); ++i) {
    const Adapter& adapter = *weights.adapters[i].adapter;
    for (const LinearSite& site : sites_) {
      const Adapter::AtLinear& at = adapter.at(site.layer, site.module);
      if (at.magnitude < 0) continue;
      const LinearAdapterMemory& kept = memory.adapters[i].linear;
      RowNorms(compute, adapter, at, weights.adapters[i].weights, linear_shape(site),
               TensorAt(tensors_, weights.base, site.tensors.weight), kept.matrix(),
               kept.at(site.layer, site.module).norms);
    }
  }
  BeginPass(pass);
  const int64_t count = memory.virtual_rows;
  if (count == 0) return absl::OkStatus();
  // They see each other as a sequence does, and what comes of it is before every sequence.
  memory.positions.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) memory.positions[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
  EmbedVirtualTokens(pass, memory.layers[0].input);
  Continuation all = {0, count, 0, nullptr, nullptr};
  ExtendLayers(pass, count, *cache, /*has_past=*/false, [&](size_t layer, const float* qkv) {
    KeepKeys(qkv, count, cache->past_keys[layer], cache->past_values[layer]);
    all.keys = cache->past_keys[layer];
    all.values = cache->past_values[layer];
    return absl::MakeConstSpan(&all, 1);
  });
  return absl::OkStatus();
}

void Decoder::ClearSequence(int64_t sequence, Network::Cache* cache) const {
  static_cast<Cache*>(cache)->tokens[static_cast<size_t>(sequence)] = 0;
}

void Decoder::CopySequence(int64_t from, int64_t to, Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  const int64_t stride = cache->columns * kv_size();
  const int64_t tokens = cache->tokens[static_cast<size_t>(from)];
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (float* const memory : {cache->keys[i], cache->values[i]}) {
      std::copy_n(memory + from * stride, tokens * kv_size(), memory + to * stride);
    }
  }
  cache->tokens[static_cast<size_t>(to)] = tokens;
}

// Keys and values of `count` tokens, one after another.
void Decoder::KeepKeys(const float* qkv, int64_t count, float* keys, float* values) const {
  for (int64_t token = 0; token < count; ++token) {
    const float* const k = qkv + token * qkv_size() + hidden_size_;
    std::copy_n(k, kv_size(), keys + token * kv_size());
    std::copy_n(k + kv_size(), kv_size(), values + token * kv_size());
  }
}

const float* Decoder::Extend(const kernels::Compute& compute, const NetworkWeights& weights,
                             absl::Span<const Appended> appended, Network::Cache* given) const {
  Cache* const cache = static_cast<Cache*>(given);
  const kernels::FlushDenormals flush;
  Memory& memory = *cache->memory;
  const Pass pass = {compute, weights, {}, memory, /*ready=*/true};
  const int64_t before = weights.virtual_tokens();
  cache->ids.clear();
  cache->continuations.clear();
  memory.positions.clear();
  for (const Appended& about : appended) {
    const int64_t past = cache->tokens[static_cast<size_t>(about.sequence)];
    const auto first = static_cast<int64_t>(cache->ids.size()), length = static_cast<int64_t>(about.ids.size());
    cache->continuations.push_back({first, length, past, nullptr, nullptr});
    cache->ids.insert(cache->ids.end(), about.ids.begin(), about.ids.end());
    for (int64_t i = 0; i < length; ++i) memory.positions.push_back(static_cast<uint32_t>(before + past + i));
    cache->tokens[static_cast<size_t>(about.sequence)] = past + length;
  }
  const auto count = static_cast<int64_t>(cache->ids.size());
  EmbeddingForward(compute, {cache->ids.data(), 1, count, count, memory.positions.data()},
                   TensorAt(tensors_, weights.base, input_embedding_),
                   TensorAt(tensors_, weights.base, position_embedding_), hidden_size_, memory.layers[0].input);
  return ExtendLayers(pass, count, *cache, before > 0, [&](size_t layer, const float* qkv) {
    for (size_t at = 0; at < appended.size(); ++at) {
      Continuation& about = cache->continuations[at];
      const int64_t sequence = appended[at].sequence * cache->columns * kv_size();
      float* const keys = cache->keys[layer] + sequence;
      float* const values = cache->values[layer] + sequence;
      KeepKeys(qkv + about.first * qkv_size(), about.count, keys + about.past * kv_size(),
               values + about.past * kv_size());
      about.keys = keys;
      about.values = values;
    }
    return absl::MakeConstSpan(cache->continuations);
  });
}

const float* Decoder::ExtendLayers(
    const Pass& pass, int64_t count, const Cache& cache, bool has_past,
    absl::FunctionRef<absl::Span<const Continuation>(size_t layer, const float* qkv)> keep_keys) const {
  const kernels::Compute& compute = pass.compute;
  const float* const weights = pass.weights.base;
  Memory& memory = pass.memory;
  const LayerMemory& kept = memory.layers[0];
  const int64_t hidden = count * hidden_size_;
  float* const x = kept.input;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    NormForward(compute, norm_kind_, x, TensorAt(tensors_, weights, layer.attention_norm.gain),
                TensorAt(tensors_, weights, layer.attention_norm.bias), epsilon_, count, hidden_size_, kept.normed,
                kept.mean, kept.rstd);
    float* const q = kept.qkv;
    Project(pass, i, kept.normed, count, q);
    AttentionShape shape = ShapeOf({}, memory);
    if (!gpt2()) {
      ApplyRope(compute, rope_, count, memory.positions.data(), heads_ + kv_heads_, q, shape.stride, false);
    }
    if (has_past) {
      shape.past = PastOf(pass, i, q);
      if (memory.virtual_rows > 0) {
        shape.past = {memory.virtual_rows, cache.past_keys[i], cache.past_values[i], kv_size()};
      }
    }
    AttentionExtend(compute, shape, q, keep_keys(i, q), kept.attended);
    if (!gpt2()) AttendToPrompt(pass, i, shape, q, count, kept.attended);
    ApplyLinear(pass, i, Module::kAttentionOutput, kept.attended, count, memory.branch, hidden_size_);
    if (gpt2()) AttendToPrompt(pass, i, shape, q, count, memory.branch);
    kernels::Add(compute, x, memory.branch, hidden, kept.middle);
    NormForward(compute, norm_kind_, kept.middle, TensorAt(tensors_, weights, layer.mlp_norm.gain),
                TensorAt(tensors_, weights, layer.mlp_norm.bias), epsilon_, count, hidden_size_, kept.mlp_normed,
                kept.mlp_mean, kept.mlp_rstd);
    ForwardMlp(pass, i, count, kept, memory.branch);
    kernels::Add(compute, kept.middle, memory.branch, hidden, x);
  }
  NormForward(compute, norm_kind_, x, TensorAt(tensors_, weights, last_norm_.gain),
              TensorAt(tensors_, weights, last_norm_.bias), epsilon_, count, hidden_size_, memory.outputs,
              memory.last_mean, memory.last_rstd);
  return memory.outputs;
}

}  // namespace millrace::model
