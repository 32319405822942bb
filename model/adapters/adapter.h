// Says which small tensors a PEFT method puts beside a decoder, what they are called and where they enter its passes.
//
//   lora           y = W x + b + s B A drop(x), s = alpha / rank (Hu et al. 2021, section 4.1), or alpha / sqrt(rank)
//                  (rsLoRA; Kalajdzievski 2023)
//   lora, dora     y = b + m / n ⊙ (W x + s B A drop(x)), n: the norms of the rows of W + s B A, as if they were
//                  constants (Liu et al. 2024, equation 5 and section 4.3). The published code drops in W x, too.
//   adalora        y = W x + b + s B (E ⊙ A x), s = alpha / (rank + 1e-5) (Zhang et al. 2023, equation 3); ranks fall
//   in
//                  training (coordinator/pruning.h)
//   ia3            y = l ⊙ (W x + b), feed-forward layers y = W (l ⊙ x) + b (Liu et al. 2022, section 3.3)
//   prompt_tuning  embeddings before the text (Lester et al. 2021), which take positions of the context
//   p_tuning       the same, made of trained inputs by two hidden layers with ReLU, or by two bidirectional layers of
//                  LSTM and a hidden layer with ReLU (Liu et al. 2021)
//   p_tuning_v2    keys and values before the text in each layer (Liu et al. 2022), which take positions, too
//   prefix_tuning  the same, made by a hidden layer with tanh of trained inputs (Li and Liang 2021, section 4.3)
//   llama_adapter  attention's outputs += g softmax(q K(P)ᵀ / sqrt(head_size)) V(P), K and V: the layer's projections,
//                  without rotary positions; GPT-2's come behind its output projection (Zhang et al. 2023, section 3)
//
// Names, shapes and formulas are those of Hugging Face's peft; so are the starts, but for embeddings' deviation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/layers/linear.h"
#include "model/tensor_list.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::model {

// The linear layers within a decoder's layer. GPT-2 has one for queries, keys and values: the first.
enum class Module { kQuery, kKey, kValue, kAttentionOutput, kGate, kUp, kDown };
inline constexpr size_t kModules = 7;

// One linear layer of a decoder.
struct LinearSite {
  size_t layer = 0;
  Module module = Module::kQuery;
  std::string path;  // "transformer.h.0.attn.c_attn"
  int64_t inputs = 0;
  int64_t outputs = 0;
  LinearTensors tensors;  // of the decoder
};

class Adapter {
 public:
  // What a method does at one linear layer: indices into tensors(), -1 for none.
  struct AtLinear {
    int a = -1;          // [rank, inputs]
    int b = -1;          // [outputs, rank]
    int e = -1;          // [rank, 1]: AdaLoRA's singular values
    int magnitude = -1;  // [outputs]: DoRA's
    int scale = -1;      // IA3's: [outputs, 1] or, of inputs, [1, inputs]
    bool of_inputs = false;
    int64_t rank = 0;

    bool any() const { return a >= 0 || scale >= 0; }
  };
  // What attends to a prompt of its own in one layer.
  struct AtAttention {
    int prompt = -1;  // [tokens, hidden_size]
    int gate = -1;    // [1]
  };
  // What makes virtual tokens: their embeddings, or the keys and values of all layers. `table` is that itself if there
  // is no small network; else rows of its inputs.
  struct Encoder {
    // One way through the tokens in a layer of LSTM: [4 hidden, inputs], [4 hidden, hidden] and [4 hidden].
    struct Direction {
      int weight_ih = -1, weight_hh = -1, bias_ih = -1, bias_hh = -1;
    };
    struct Lstm {
      Direction forward, reverse;
    };
    int table = -1;
    std::vector<Lstm> lstms;           // its first layers, if any; those behind the first have 2 hidden inputs
    std::vector<int> weights, biases;  // of the linear layers behind these, [outputs, inputs] and [outputs]
  };

  // `spec` has all defaults of its method (FillAdapterDefaults); `ranks`, unless it is empty, says those of AdaLoRA
  // that are left at each site in the order of `sites`. INVALID_ARGUMENT names the field that does not fit the model; and a family without sites.
  static absl::StatusOr<std::unique_ptr<Adapter>> Create(const v1::AdapterSpec& spec, const v1::ModelSpec& model,
                                                         absl::Span<const LinearSite> sites,
                                                         absl::Span<const int64_t> ranks = {});

  const v1::AdapterSpec& spec() const { return spec_; }
  // Groups are the decoder's.
  const TensorList& tensors() const { return tensors_; }

  bool is_low_rank() const { return is_low_rank_; }
  // Whether it can become part of the model's own weights.
  bool merges() const { return is_low_rank_ || spec_.type() == "ia3"; }
  const AtLinear& at(size_t layer, Module module) const {
    return linear_[layer * kModules + static_cast<size_t>(module)];
  }
  // The linear layers that it is for, in the order of `sites`; at some of them nothing may be left of AdaLoRA.
  absl::Span<const LinearSite> targets() const { return targets_; }
  // AdaLoRA's layers, in the order of the model; none of other methods.
  std::vector<const AtLinear*> triplets() const;
  float low_rank_scale() const { return low_rank_scale_; }
  float dropout() const { return static_cast<float>(spec_.dropout()); }

  // Positions that virtual tokens take before the text; 0: none.
  int64_t virtual_tokens() const { return virtual_tokens_; }
  // Whether they have embeddings, or else keys and values.
  bool virtual_embeddings() const { return virtual_embeddings_; }
  // Numbers of a virtual token: hidden_size, or 2 * layers * kv_heads * head_size: keys, then values, of each layer.
  int64_t virtual_width() const { return virtual_width_; }
  const Encoder& encoder() const { return encoder_; }

  // Tokens of the prompts that layers attend to on their own; 0: none.
  int64_t prompt_tokens() const { return prompt_tokens_; }
  const AtAttention& at_attention(size_t layer) const { return attention_[layer]; }

 private:
  Adapter() = default;
  absl::Status AddLinear(absl::Span<const LinearSite> sites, absl::Span<const int64_t> ranks);
  void AddVirtualTokens(const v1::ModelSpec& model);
  absl::Status AddAttention(const v1::ModelSpec& model);
  int Add(std::string name, std::vector<int64_t> shape, uint32_t group, Start start, double size);

  v1::AdapterSpec spec_;
  TensorList tensors_;
  std::vector<LinearSite> targets_;
  std::vector<AtLinear> linear_;        // by layer and module
  std::vector<AtAttention> attention_;  // by layer
  Encoder encoder_;
  bool is_low_rank_ = false;
  bool virtual_embeddings_ = false;
  float low_rank_scale_ = 0;
  int64_t virtual_tokens_ = 0, virtual_width_ = 0, prompt_tokens_ = 0;
};

// What tensors of adapters are called: this, then the path of the layer in the model.
inline constexpr absl::string_view kAdapterPrefix = "base_model.model.";

// Whether a target names the layer: its path, or what that ends with after a dot; or all-linear.
bool IsTarget(absl::string_view target, absl::string_view path);

}  // namespace millrace::model
