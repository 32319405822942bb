#include "model/adapters/adapter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace millrace::model {
namespace {

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("adapter.", field, what));
}

bool IsOneOf(const google::protobuf::RepeatedPtrField<std::string>& targets, absl::string_view path) {
  return std::any_of(targets.begin(), targets.end(),
                     [path](const std::string& target) { return IsTarget(target, path); });
}

}  // namespace

bool IsTarget(absl::string_view target, absl::string_view path) {
  return target == "all-linear" || path == target || absl::EndsWith(path, absl::StrCat(".", target));
}

absl::StatusOr<std::unique_ptr<Adapter>> Adapter::Create(const v1::AdapterSpec& spec, const v1::ModelSpec& model,
                                                         absl::Span<const LinearSite> sites,
                                                         absl::Span<const int64_t> ranks) {
  if (sites.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("adapters are for transformers; a model of the family ", model.family(), " takes none"));
  }
  auto adapter = std::unique_ptr<Adapter>(new Adapter);
  adapter->spec_ = spec;
  adapter->linear_.resize(model.layers() * kModules);
  adapter->attention_.resize(model.layers());
  const std::string& type = spec.type();
  if (type == "lora" || type == "adalora" || type == "ia3") {
    MILLRACE_RETURN_IF_ERROR(adapter->AddLinear(sites, ranks));
  } else if (type == "prompt_tuning" || type == "p_tuning" || type == "prefix_tuning" || type == "p_tuning_v2") {
    if (spec.virtual_tokens() >= model.context()) {
      return Wrong("virtual_tokens", absl::StrCat(": ", spec.virtual_tokens(),
                                                  " leave no room for text in a context of ", model.context()));
    }
    adapter->AddVirtualTokens(model);
  } else if (type == "llama_adapter") {
    MILLRACE_RETURN_IF_ERROR(adapter->AddAttention(model));
  } else {
    return Wrong("type", absl::StrCat(": there is no '", type, "'"));
  }
  return adapter;
}

int Adapter::Add(std::string name, std::vector<int64_t> shape, uint32_t group, Start start, double size) {
  TensorSpec tensor;
  tensor.name = std::move(name);
  tensor.role = shape.size() == 2 && shape[0] > 1 && shape[1] > 1 ? Role::kMatrix : Role::kVector;
  tensor.shape = std::move(shape);
  tensor.group = group;
  tensor.start = start;
  tensor.start_size = static_cast<float>(size);
  return tensors_.Add(std::move(tensor));
}

absl::Status Adapter::AddLinear(absl::Span<const LinearSite> sites, absl::Span<const int64_t> ranks) {
  const bool ia3 = spec_.type() == "ia3", svd = spec_.type() == "adalora";
  is_low_rank_ = !ia3;
  if (is_low_rank_) {
    const double rank = spec_.rank();
    low_rank_scale_ = static_cast<float>(spec_.alpha() / (svd                       ? rank + 1e-5
                                                          : spec_.rank_stabilized() ? std::sqrt(rank)
                                                                                    : rank));
  }
  for (const std::string& target : spec_.targets()) {
    if (std::any_of(sites.begin(), sites.end(), [&](const LinearSite& site) { return IsTarget(target, site.path); })) {
      continue;
    }
    std::vector<absl::string_view> names;
    for (const LinearSite& site : sites) {
      if (site.layer == 0) names.push_back(absl::string_view(site.path).substr(site.path.find(".0.") + 3));
    }
    return Wrong("targets", absl::StrCat(": no linear layer is called '", target, "'; there are ",
                                         absl::StrJoin(names, ", "), " and all-linear"));
  }
  for (const std::string& target : spec_.feedforward_targets()) {
    const bool known = std::any_of(sites.begin(), sites.end(), [&](const LinearSite& site) {
      return IsTarget(target, site.path) && IsOneOf(spec_.targets(), site.path);
    });
    if (!known) return Wrong("feedforward_targets", absl::StrCat(": '", target, "' is not one of the targets"));
  }
  for (size_t i = 0; i < sites.size(); ++i) {
    const LinearSite& site = sites[i];
    if (!IsOneOf(spec_.targets(), site.path)) continue;
    targets_.push_back(site);
    if (!ranks.empty() && ranks[i] > int64_t{spec_.rank()}) {
      return Wrong("rank", absl::StrCat(": ", spec_.rank(), " where ", site.path, " has ", ranks[i]));
    }
    if (!ranks.empty() && ranks[i] == 0) continue;
    AtLinear& at = linear_[site.layer * kModules + static_cast<size_t>(site.module)];
    const std::string prefix = absl::StrCat(kAdapterPrefix, site.path, ".");
    const auto group = static_cast<uint32_t>(site.layer) + 1;
    if (ia3) {
      at.of_inputs = IsOneOf(spec_.feedforward_targets(), site.path);
      std::vector<int64_t> shape = {site.outputs, 1};
      if (at.of_inputs) shape = {1, site.inputs};
      at.scale = Add(prefix + "ia3_l", std::move(shape), group, Start::kOnes, 0);
      continue;
    }
    at.rank = ranks.empty() ? int64_t{spec_.rank()} : ranks[i];
    if (svd) {
      at.a = Add(prefix + "lora_A", {at.rank, site.inputs}, group, Start::kNormal, 0.02);
      at.b = Add(prefix + "lora_B", {site.outputs, at.rank}, group, Start::kNormal, 0.02);
      at.e = Add(prefix + "lora_E", {at.rank, 1}, group, Start::kZeros, 0);
      continue;
    }
    at.a = Add(prefix + "lora_A.weight", {at.rank, site.inputs}, group, Start::kUniform,
               1.0 / std::sqrt(static_cast<double>(site.inputs)));
    at.b = Add(prefix + "lora_B.weight", {site.outputs, at.rank}, group, Start::kZeros, 0);
    if (spec_.dora()) at.magnitude = Add(prefix + "lora_magnitude_vector", {site.outputs}, group, Start::kRowNorms, 0);
  }
  return absl::OkStatus();
}

std::vector<const Adapter::AtLinear*> Adapter::triplets() const {
  std::vector<const AtLinear*> triplets;
  for (const AtLinear& at : linear_) {
    if (at.e >= 0) triplets.push_back(&at);
  }
  return triplets;
}

void Adapter::AddVirtualTokens(const v1::ModelSpec& model) {
  const int64_t hidden = model.hidden_size(), kv_size = hidden / model.heads() * model.kv_heads();
  virtual_tokens_ = spec_.virtual_tokens();
  virtual_embeddings_ = spec_.type() == "prompt_tuning" || spec_.type() == "p_tuning";
  virtual_width_ = virtual_embeddings_ ? hidden : 2 * int64_t{model.layers()} * kv_size;
  if (spec_.type() == "prompt_tuning" || spec_.type() == "p_tuning_v2") {
    encoder_.table = Add("prompt_embeddings", {virtual_tokens_, virtual_width_}, 0, Start::kNormal, spec_.init_std());
    return;
  }
  const int64_t inputs = virtual_embeddings_ ? hidden : kv_size, width = spec_.encoder_hidden_size();
  encoder_.table = Add("prompt_encoder.embedding.weight", {virtual_tokens_, inputs}, 0, Start::kNormal, 1);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, int64_t fan) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(fan));
    return Add(absl::StrCat("prompt_encoder.", name), std::move(shape), 0, Start::kUniform, bound);
  };
  const auto layer = [&](const std::string& name, int64_t from, int64_t to) {
    encoder_.weights.push_back(add(name + ".weight", {to, from}, from));
    encoder_.biases.push_back(add(name + ".bias", {to}, from));
  };
  const auto direction = [&](const std::string& suffix, int64_t from) {
    Encoder::Direction made;
    made.weight_ih = add("lstm_head.weight_ih" + suffix, {4 * width, from}, width);
    made.weight_hh = add("lstm_head.weight_hh" + suffix, {4 * width, width}, width);
    made.bias_ih = add("lstm_head.bias_ih" + suffix, {4 * width}, width);
    made.bias_hh = add("lstm_head.bias_hh" + suffix, {4 * width}, width);
    return made;
  };
  if (spec_.encoder() == "lstm") {
    for (const int number : {0, 1}) {
      const std::string suffix = absl::StrCat("_l", number);
      const int64_t from = number == 0 ? inputs : 2 * width;
      Encoder::Lstm& lstm = encoder_.lstms.emplace_back();
      lstm.forward = direction(suffix, from);
      lstm.reverse = direction(suffix + "_reverse", from);
    }
    layer("mlp_head.0", 2 * width, 2 * width);
    layer("mlp_head.2", 2 * width, virtual_width_);
  } else if (virtual_embeddings_) {
    layer("mlp_head.0", inputs, width);
    layer("mlp_head.2", width, width);
    layer("mlp_head.4", width, virtual_width_);
  } else {
    layer("transform.0", inputs, width);
    layer("transform.2", width, virtual_width_);
  }
}

absl::Status Adapter::AddAttention(const v1::ModelSpec& model) {
  if (spec_.layers() > model.layers()) {
    return Wrong("layers", absl::StrCat(": ", spec_.layers(), " where the model has ", model.layers()));
  }
  const bool gpt2 = model.family() == "gpt2";
  prompt_tokens_ = spec_.virtual_tokens();
  for (uint32_t layer = model.layers() - spec_.layers(); layer < model.layers(); ++layer) {
    const std::string prefix =
        absl::StrCat(kAdapterPrefix, gpt2 ? "transformer.h." : "model.layers.", layer, gpt2 ? ".attn." : ".self_attn.");
    attention_[layer].prompt = Add(prefix + "adaption_prompt", {1, prompt_tokens_, int64_t{model.hidden_size()}},
                                   layer + 1, Start::kNormal, spec_.init_std());
    attention_[layer].gate = Add(prefix + "adaption_gate", {1}, layer + 1, Start::kZeros, 0);
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
