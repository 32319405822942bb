#include "model/formats/peft.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "model/adapters/linear_adapter.h"
#include "model/adapters/virtual_tokens.h"
#include "model/formats/json_fields.h"
#include "model/formats/tensor_values.h"

namespace millrace::model {
namespace {

constexpr size_t kMaxConfigBytes = 16 << 20;
constexpr uint32_t kMostCount = 1 << 20;
constexpr size_t kMostTargets = 4096;

// A list of names, or all-linear.
void ReadNames(const Json& object, const char* name, JsonFields* fields,
               google::protobuf::RepeatedPtrField<std::string>* names) {
  if (!fields->Has(name)) return;
  const Json& value = object[name];
  if (value == "all-linear") {
    names->Add("all-linear");
    return;
  }
  if (value.is_string()) {
    return fields->Wrong(name, "is a regular expression, which is not supported; a list of names is");
  }
  if (!value.is_array() || value.size() > kMostTargets) return fields->Wrong(name, "must be a list of names");
  for (const Json& item : value) {
    if (!item.is_string()) return fields->Wrong(name, "must be a list of names");
    names->Add(item.get<std::string>());
  }
}

// What changes the computation, or the files, in a way that is not supported; peft writes it even where it is not used.
void MustBeUnused(const Json& object, const char* name, JsonFields* fields) {
  if (!fields->Has(name)) return;
  const Json& value = object[name];
  const bool nothing = value == false || ((value.is_object() || value.is_array()) && value.empty());
  if (!nothing) fields->MustBeAbsent(name);
}

void ReadLowRank(const Json& object, JsonFields* fields, bool svd, v1::AdapterSpec* spec) {
  spec->set_type(svd ? "adalora" : "lora");
  spec->set_rank(svd ? fields->Count("init_r", 12, kMostCount) : fields->Count("r", 8, kMostCount));
  spec->set_alpha(fields->Number("lora_alpha", 8, 1e-6, 1e6));
  spec->set_dropout(fields->Number("lora_dropout", 0, 0, 0.999));
  ReadNames(object, "target_modules", fields, spec->mutable_targets());
  if (!svd) {
    spec->set_rank_stabilized(fields->Flag("use_rslora", false));
    spec->set_dora(fields->Flag("use_dora", false));
    MustBeUnused(object, "rank_pattern", fields);
  } else {
    constexpr double kMostSteps = 1e9;
    spec->set_target_rank(std::min(fields->Count("target_r", 8, kMostCount), spec->rank()));
    spec->set_warmup_steps(static_cast<uint32_t>(fields->Number("tinit", 0, 0, kMostSteps)));
    spec->set_final_steps(static_cast<uint32_t>(fields->Number("tfinal", 0, 0, kMostSteps)));
    spec->set_allocate_every(fields->Count("deltaT", 1, kMostCount));
    spec->add_importance_decay(fields->Number("beta1", 0.85, 0, 1));
    spec->add_importance_decay(fields->Number("beta2", 0.85, 0, 1));
    spec->set_orthogonality(fields->Number("orth_reg_weight", 0.5, 0, 1e6));
  }
  fields->MustBe("bias", "none");
  for (const char* name : {"alpha_pattern", "lora_bias", "modules_to_save", "layers_to_transform", "layer_replication",
                           "exclude_modules", "target_parameters", "trainable_token_indices", "use_qalora",
                           "use_bdlora", "alora_invocation_tokens", "arrow_config"}) {
    MustBeUnused(object, name, fields);
  }
}

void ReadPrompt(const Json& object, JsonFields* fields, const v1::ModelSpec& model, absl::string_view type,
                v1::AdapterSpec* spec) {
  spec->set_virtual_tokens(fields->Count("num_virtual_tokens", 0, kMostCount));
  fields->MustBe("num_transformer_submodules", 1);
  fields->MustBe("task_type", "CAUSAL_LM");
  MustBeUnused(object, "modules_to_save", fields);
  fields->MustBe("num_layers", model.layers());
  if (type == "PROMPT_TUNING") {
    spec->set_type("prompt_tuning");
    return;
  }
  spec->set_encoder_hidden_size(fields->Count("encoder_hidden_size", model.hidden_size(), kMostCount));
  const bool keys = type == "PREFIX_TUNING";
  // As peft stores it: what the network made.
  spec->set_type(keys ? "p_tuning_v2" : "prompt_tuning");
}

std::string PeftType(const std::string& type) {
  if (type == "lora") return "LORA";
  if (type == "adalora") return "ADALORA";
  if (type == "ia3") return "IA3";
  if (type == "prompt_tuning") return "PROMPT_TUNING";
  if (type == "p_tuning") return "P_TUNING";
  if (type == "llama_adapter") return "ADAPTION_PROMPT";
  return "PREFIX_TUNING";
}

// The rows of a [rank, columns] or, of B, the columns of a [outputs, rank] that are kept.
std::vector<float> Kept(const float* values, const TensorSpec& tensor, bool of_columns,
                        const std::vector<int64_t>& kept) {
  const int64_t rank = tensor.shape[of_columns ? 1 : 0], others = tensor.size / rank;
  std::vector<float> made;
  if (of_columns) {
    for (int64_t row = 0; row < others; ++row) {
      for (const int64_t index : kept) made.push_back(values[row * rank + index]);
    }
  } else {
    for (const int64_t index : kept) made.insert(made.end(), values + index * others, values + (index + 1) * others);
  }
  return made;
}

// Which of `at`'s singular values are not zero. `at` may be of a layer at which nothing is left.
std::vector<int64_t> NonZeroOf(const StoredAdapter& stored, const Adapter::AtLinear& at) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < at.rank; ++i) {
    if (stored.weights[static_cast<size_t>(stored.adapter->tensors()[at.e].offset + i)] != 0.0f) kept.push_back(i);
  }
  return kept;
}

// Whether singular values have gone.
bool IsPruned(const StoredAdapter& stored) {
  bool any = false, all = true;
  for (const LinearSite& site : stored.adapter->targets()) {
    const Adapter::AtLinear& at = stored.adapter->at(site.layer, site.module);
    const size_t kept = NonZeroOf(stored, at).size();
    any |= kept > 0 || at.rank < int64_t{stored.adapter->spec().rank()};
    all &= kept == stored.adapter->spec().rank();
  }
  return any && !all;
}

// The spec of a network that makes virtual tokens, if the file holds one.
void FindEncoder(const SafetensorsHeader& header, v1::AdapterSpec* spec) {
  if (header.Find("prompt_encoder.embedding.weight") == nullptr) return;
  spec->set_type(spec->type() == "prompt_tuning" ? "p_tuning" : "prefix_tuning");
  if (spec->type() != "p_tuning") return;
  spec->set_encoder(header.Find("prompt_encoder.lstm_head.weight_ih_l0") == nullptr ? "mlp" : "lstm");
}

// Ranks at the sites, by the shapes of their tensors.
std::vector<int64_t> RanksOf(const SafetensorsHeader& header, absl::Span<const LinearSite> sites) {
  std::vector<int64_t> ranks;
  for (const LinearSite& site : sites) {
    const SafetensorsEntry* const entry = header.Find(absl::StrCat(kAdapterPrefix, site.path, ".lora_E"));
    ranks.push_back(entry == nullptr || entry->shape.empty() ? 0 : entry->shape[0]);
  }
  return ranks;
}

}  // namespace

absl::StatusOr<v1::AdapterSpec> ParseAdapterConfig(absl::string_view json, absl::string_view file,
                                                   const v1::ModelSpec& model) {
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(json, file));
  JsonFields fields(object, file);
  v1::AdapterSpec spec;
  const std::string type = fields.Text("peft_type");
  if (type == "LORA" || type == "ADALORA") {
    ReadLowRank(object, &fields, type == "ADALORA", &spec);
  } else if (type == "IA3") {
    spec.set_type("ia3");
    ReadNames(object, "target_modules", &fields, spec.mutable_targets());
    ReadNames(object, "feedforward_modules", &fields, spec.mutable_feedforward_targets());
    MustBeUnused(object, "modules_to_save", &fields);
    MustBeUnused(object, "exclude_modules", &fields);
  } else if (type == "PROMPT_TUNING" || type == "P_TUNING" || type == "PREFIX_TUNING") {
    ReadPrompt(object, &fields, model, type, &spec);
  } else if (type == "ADAPTION_PROMPT") {
    spec.set_type("llama_adapter");
    spec.set_virtual_tokens(fields.Count("adapter_len", 0, kMostCount));
    spec.set_layers(fields.Count("adapter_layers", 0, kMostCount));
  } else if (fields.status().ok()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": peft_type \"", type.substr(0, 60),
                                                   "\" is not supported; LORA, ADALORA, IA3, PROMPT_TUNING, P_TUNING, ",
                                                   "PREFIX_TUNING and ADAPTION_PROMPT are"));
  }
  MILLRACE_RETURN_IF_ERROR(fields.status());
  FillAdapterDefaults(model, &spec);
  return spec;
}

std::string PrintAdapterConfig(const Adapter& adapter, const v1::ModelSpec& model, absl::string_view base,
                               const RankPattern& rank_pattern) {
  const v1::AdapterSpec& spec = adapter.spec();
  const bool gpt2 = model.family() == "gpt2";
  Json json;
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = base.empty() ? Json(nullptr) : Json(std::string(base));
  json["inference_mode"] = true;
  json["peft_type"] = PeftType(spec.type());
  json["revision"] = nullptr;
  json["task_type"] = "CAUSAL_LM";
  const auto names = [](const google::protobuf::RepeatedPtrField<std::string>& from) -> Json {
    if (from.size() == 1 && from[0] == "all-linear") return from[0];
    return std::vector<std::string>(from.begin(), from.end());
  };
  if (adapter.is_low_rank()) {
    const bool svd = spec.type() == "adalora";
    json["r"] = spec.rank();
    json["lora_alpha"] = spec.alpha();
    json["lora_dropout"] = spec.dropout();
    json["target_modules"] = names(spec.targets());
    json["fan_in_fan_out"] = gpt2;
    json["bias"] = "none";
    json["use_rslora"] = spec.rank_stabilized();
    json["use_dora"] = spec.dora();
    json["init_lora_weights"] = true;
    json["modules_to_save"] = nullptr;
    if (svd) {
      json["init_r"] = spec.rank();
      json["target_r"] = spec.target_rank();
      json["tinit"] = spec.warmup_steps();
      json["tfinal"] = spec.final_steps();
      json["deltaT"] = spec.allocate_every();
      json["beta1"] = spec.importance_decay(0);
      json["beta2"] = spec.importance_decay(1);
      json["orth_reg_weight"] = spec.orthogonality();
      // peft wants the steps of the phase, more than those two; nothing follows from them but where training goes on.
      json["total_step"] = uint64_t{spec.warmup_steps()} + spec.final_steps() + 1;
      json["rank_pattern"] = nullptr;
      if (!rank_pattern.empty()) json["rank_pattern"] = rank_pattern;
    }
  } else if (spec.type() == "ia3") {
    json["target_modules"] = names(spec.targets());
    json["feedforward_modules"] = names(spec.feedforward_targets());
    json["fan_in_fan_out"] = gpt2;
    json["modules_to_save"] = nullptr;
  } else if (spec.type() == "llama_adapter") {
    json["adapter_len"] = spec.virtual_tokens();
    json["adapter_layers"] = spec.layers();
    json["target_modules"] = gpt2 ? "attn" : "self_attn";
  } else {
    const bool keys = !adapter.virtual_embeddings();
    const uint32_t width = model.hidden_size() / model.heads();
    json["num_virtual_tokens"] = spec.virtual_tokens();
    json["num_transformer_submodules"] = 1;
    json["num_layers"] = model.layers();
    json["num_attention_heads"] = keys ? model.kv_heads() : model.heads();
    json["token_dim"] = keys ? model.kv_heads() * width : model.hidden_size();
    if (spec.has_encoder_hidden_size()) json["encoder_hidden_size"] = spec.encoder_hidden_size();
    if (keys) json["prefix_projection"] = spec.type() == "prefix_tuning";
    if (spec.type() == "p_tuning") {
      json["encoder_reparameterization_type"] = spec.encoder() == "lstm" ? "LSTM" : "MLP";
      json["encoder_num_layers"] = 2;
    }
    if (spec.type() == "prompt_tuning") json["prompt_tuning_init"] = "RANDOM";
  }
  return json.dump(2) + "\n";
}

absl::StatusOr<std::string> BaseOfAdapter(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kAdapterConfigFile);
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kMaxConfigBytes));
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(json, path));
  JsonFields fields(object, path);
  const std::string base = fields.Text("base_model_name_or_path");
  MILLRACE_RETURN_IF_ERROR(fields.status());
  if (base.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": base_model_name_or_path is missing: name the model as --model and the adapter as --adapter"));
  }
  return (std::filesystem::path(directory) / base).lexically_normal().string();
}

absl::StatusOr<StoredAdapter> ReadAdapter(const std::string& directory, const Network& network) {
  const std::string config_path = absl::StrCat(directory, "/", kAdapterConfigFile);
  const std::string path = absl::StrCat(directory, "/", kAdapterFile);
  MILLRACE_ASSIGN_OR_RETURN(const std::string json, ReadFile(config_path, kMaxConfigBytes));
  MILLRACE_ASSIGN_OR_RETURN(v1::AdapterSpec spec, ParseAdapterConfig(json, config_path, network.spec()));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  FindEncoder(file->header(), &spec);
  std::vector<int64_t> ranks;
  if (spec.type() == "adalora") ranks = RanksOf(file->header(), network.linear_sites());
  StoredAdapter stored;
  absl::StatusOr<std::unique_ptr<Adapter>> adapter =
      Adapter::Create(spec, network.spec(), network.linear_sites(), ranks);
  if (!adapter.ok()) return Annotate(adapter.status(), absl::StrCat(config_path, " does not fit the model"));
  stored.adapter = *std::move(adapter);
  const TensorList& tensors = stored.adapter->tensors();
  stored.weights.resize(static_cast<size_t>(tensors.floats()));
  std::vector<bool> found(static_cast<size_t>(tensors.size()));
  for (const SafetensorsEntry& entry : file->header().tensors) {
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor '", entry.name, "' ", what));
    };
    const int index = tensors.Find(entry.name);
    if (index < 0) {
      // What AdaLoRA has pruned away altogether.
      if (entry.begin == entry.end) continue;
      return wrong("is not one of such an adapter of this model");
    }
    if (entry.shape != tensors[index].shape) {
      return wrong(absl::StrCat("has shape [", absl::StrJoin(entry.shape, ", "), "] where this model needs [",
                                absl::StrJoin(tensors[index].shape, ", "), "]"));
    }
    MILLRACE_RETURN_IF_ERROR(
        Annotate(ReadValues(entry, file->bytes(entry), stored.weights.data() + tensors[index].offset),
                 absl::StrCat(path, ": tensor '", entry.name, "'")));
    found[static_cast<size_t>(index)] = true;
  }
  for (int i = 0; i < tensors.size(); ++i) {
    if (!found[static_cast<size_t>(i)]) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor '", tensors[i].name, "' is missing"));
    }
  }
  return stored;
}

absl::Status WriteAdapter(const std::string& directory, const StoredAdapter& stored, const v1::ModelSpec& model,
                          absl::string_view base, const kernels::Compute& compute) {
  const Adapter& adapter = *stored.adapter;
  SafetensorsHeader header;
  header.metadata["format"] = "pt";
  std::string data;
  const auto add = [&](std::string name, std::vector<int64_t> shape, const float* values, int64_t size) {
    header.tensors.push_back({std::move(name), "F32", std::move(shape)});
    data.append(reinterpret_cast<const char*>(values), static_cast<size_t>(size) * sizeof(float));
  };
  RankPattern rank_pattern;
  if (adapter.spec().type() == "adalora" && IsPruned(stored)) {
    for (const LinearSite& site : adapter.targets()) {
      const Adapter::AtLinear& at = adapter.at(site.layer, site.module);
      const std::vector<int64_t> kept = NonZeroOf(stored, at);
      // Of an adapter that came with fewer nobody knows which they were.
      std::vector<bool>& pattern = rank_pattern[absl::StrCat(site.path, ".lora_E")];
      pattern.assign(adapter.spec().rank(), false);
      for (const int64_t index : kept) pattern[static_cast<size_t>(index)] = true;
      const auto rank = static_cast<int64_t>(kept.size());
      const auto add_kept = [&](absl::string_view name, int tensor, bool of_columns, std::vector<int64_t> shape) {
        std::vector<float> values;
        if (rank > 0) {
          const TensorSpec& whole = adapter.tensors()[tensor];
          values = Kept(stored.weights.data() + whole.offset, whole, of_columns, kept);
        }
        add(absl::StrCat(kAdapterPrefix, site.path, name), std::move(shape), values.data(),
            static_cast<int64_t>(values.size()));
      };
      add_kept(".lora_A", at.a, false, {rank, site.inputs});
      add_kept(".lora_B", at.b, true, {site.outputs, rank});
      add_kept(".lora_E", at.e, false, {rank, 1});
    }
  } else if (adapter.encoder().weights.empty()) {
    for (const TensorSpec& tensor : adapter.tensors().tensors()) {
      add(tensor.name, tensor.shape, stored.weights.data() + tensor.offset, tensor.size);
    }
  } else {
    MILLRACE_ASSIGN_OR_RETURN(VirtualTokens virtual_tokens, VirtualTokens::Create(&adapter, /*for_training=*/false));
    add("prompt_embeddings", {adapter.virtual_tokens(), adapter.virtual_width()},
        virtual_tokens.Forward(compute, stored.weights.data()), adapter.virtual_tokens() * adapter.virtual_width());
  }
  const std::string bytes = LayOutSafetensors(&header) + data;
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(directory, "/", kAdapterFile), bytes));
  return WriteFileAtomically(absl::StrCat(directory, "/", kAdapterConfigFile),
                             PrintAdapterConfig(adapter, model, base, rank_pattern));
}

absl::Status MergeAdapter(const kernels::Compute& compute, const Network& network, const StoredAdapter& stored,
                          float* weights) {
  if (!stored.adapter->merges()) {
    return absl::InvalidArgumentError(absl::StrCat("an adapter of ", stored.adapter->spec().type(),
                                                   " cannot become part of the model's weights; lora and ia3 can"));
  }
  for (const LinearSite& site : network.linear_sites()) {
    const LinearTensors& tensors = site.tensors;
    MergeLinear(compute, *stored.adapter, stored.adapter->at(site.layer, site.module), stored.weights.data(),
                network.linear_shape(site), weights + network.tensors()[tensors.weight].offset,
                tensors.bias < 0 ? nullptr : weights + network.tensors()[tensors.bias].offset);
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
