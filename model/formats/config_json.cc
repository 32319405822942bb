#include "model/formats/config_json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/families/causal_stack.h"
#include "model/families/encoder.h"
#include "model/formats/json_fields.h"

namespace millrace::model {
namespace {

// How architectures with a head for labels end.
constexpr char kClassifier[] = "ForSequenceClassification";

// A family in Hugging Face's words, and its defaults where they differ. For ours Hugging Face has no words.
struct Family {
  const char* name;
  const char* model_type;
  const char* architecture;  // what its classes begin with
  const char* causal;        // what that of a language model ends with
  uint32_t kv_heads;         // 0: as many as heads
  uint32_t sliding_window;   // 0: knows none
};
constexpr Family kFamilies[] = {
    {"gpt2", "gpt2", "GPT2", "LMHeadModel", 0, 0},
    {"llama", "llama", "Llama", "ForCausalLM", 0, 0},
    {"mistral", "mistral", "Mistral", "ForCausalLM", 8, 4096},
    {"qwen2", "qwen2", "Qwen2", "ForCausalLM", 32, 4096},
    {"bert", "bert", "Bert", "ForPreTraining", 0, 0},
    {"lstm", "millrace_lstm", "MillraceLstm", "ForCausalLM", 0, 0},
    {"cnn", "millrace_cnn", "MillraceCnn", "ForCausalLM", 0, 0},
};

// Whose `word` this is; null: none's.
const Family* FindFamily(const char* Family::*word, absl::string_view value) {
  for (const Family& family : kFamilies) {
    if (family.*word == value) return &family;
  }
  return nullptr;
}

const char* DtypeName(Dtype dtype) {
  return dtype == Dtype::kF16 ? "float16" : dtype == Dtype::kBf16 ? "bfloat16" : "float32";
}

Head ReadHead(JsonFields* fields, const Json& config) {
  if (!fields->Has("architectures") || !config["architectures"].is_array() || config["architectures"].empty() ||
      !config["architectures"][0].is_string() ||
      !absl::EndsWith(config["architectures"][0].get<std::string>(), kClassifier)) {
    return Head::kLanguage;
  }
  // transformers' default is two labels.
  fields->MustBe("num_labels", 1);
  const bool named = fields->Has("id2label");
  if (named ? !config["id2label"].is_object() || config["id2label"].size() != 1 : !fields->Has("num_labels")) {
    fields->Wrong("id2label",
                  "must have one entry: of classifiers, those with one label (reward models) are supported");
  }
  return Head::kScalar;
}

void ReadGpt2(JsonFields* fields, v1::ModelSpec* spec) {
  spec->set_layers(fields->Count("n_layer"));
  spec->set_hidden_size(fields->Count("n_embd"));
  spec->set_heads(fields->Count("n_head"));
  spec->set_kv_heads(spec->heads());
  spec->set_context(fields->Count("n_positions"));
  spec->set_intermediate_size(fields->Count("n_inner", 4 * std::min(spec->hidden_size(), 1u << 20)));
  spec->set_norm_epsilon(fields->Number("layer_norm_epsilon", 1e-5, 1e-30, 1));
  spec->set_dropout(fields->Number("resid_pdrop", 0.1, 0, 0.999));
  spec->set_bias(fields->Flag("bias", true));
  spec->set_tied_embeddings(fields->Flag("tie_word_embeddings", true));
  fields->MustBe("activation_function", "gelu_new");
  fields->MustBe("scale_attn_weights", true);
  fields->MustBe("scale_attn_by_inverse_layer_idx", false);
  fields->MustBe("add_cross_attention", false);
}

// Sliding windows are Mistral's in all layers if there is one, and Qwen2's in those from max_window_layers on if
// use_sliding_window says so.
void ReadSlidingWindow(JsonFields* fields, const Json& config, const Family& family, v1::ModelSpec* spec) {
  const bool qwen2 = spec->family() == "qwen2";
  if (family.sliding_window == 0 || (qwen2 && !fields->Flag("use_sliding_window", false))) return;
  // Null means none; absent, the default.
  if (config.contains("sliding_window") && config["sliding_window"].is_null()) return;
  const uint32_t window = fields->Count("sliding_window", family.sliding_window);
  if (!qwen2) {
    spec->set_sliding_window(window);
    return;
  }
  uint32_t sliding = 0;
  if (fields->Has("layer_types")) {
    for (const Json& type : config["layer_types"]) sliding += type == "sliding_attention";
    if (!config["layer_types"].is_array() || config["layer_types"].size() != spec->layers()) {
      return fields->Wrong("layer_types", "must be a list of a type for each layer");
    }
  } else {
    // Here 0 is a count too.
    const bool none = fields->Has("max_window_layers") && config["max_window_layers"] == 0;
    const uint32_t first = none ? 0 : fields->Count("max_window_layers", 28);
    sliding = spec->layers() - std::min(first, spec->layers());
  }
  if (sliding == 0) return;
  if (sliding < spec->layers()) {
    return fields->Wrong(fields->Has("layer_types") ? "layer_types" : "max_window_layers",
                         "gives some layers a sliding window and some none, which is not supported; all or none is");
  }
  spec->set_sliding_window(window);
}

void ReadLlama(JsonFields* fields, const Json& config, const Family& family, v1::ModelSpec* spec) {
  spec->set_layers(fields->Count("num_hidden_layers"));
  spec->set_hidden_size(fields->Count("hidden_size"));
  spec->set_heads(fields->Count("num_attention_heads"));
  // Null means as many as heads; absent, the default.
  const bool as_heads = family.kv_heads == 0 || config.contains("num_key_value_heads");
  spec->set_kv_heads(fields->Count("num_key_value_heads", as_heads ? spec->heads() : family.kv_heads));
  spec->set_context(fields->Count("max_position_embeddings"));
  spec->set_intermediate_size(fields->Count("intermediate_size"));
  spec->set_norm_epsilon(fields->Number("rms_norm_eps", 1e-6, 1e-30, 1));
  spec->set_dropout(fields->Number("attention_dropout", 0, 0, 0.999));
  spec->set_tied_embeddings(fields->Flag("tie_word_embeddings", false));
  spec->set_bias(false);
  fields->MustBe("hidden_act", "silu");
  if (spec->family() == "llama") {
    fields->MustBe("attention_bias", false);
    fields->MustBe("mlp_bias", false);
    fields->MustBe("pretraining_tp", 1);
  }
  if (spec->heads() > 0) fields->MustBe("head_dim", spec->hidden_size() / spec->heads());
  fields->MustBe("partial_rotary_factor", 1);
  ReadSlidingWindow(fields, config, family, spec);
  spec->set_rope_theta(fields->Number("rope_theta", 10000, 1, 1e12));
  // Since transformers 5 theta lies in rope_parameters, which win; before, rope_scaling was null for the plain kind.
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields->Has(name)) continue;
    if (!config[name].is_object()) {
      fields->Wrong(name, "must be an object");
      continue;
    }
    JsonFields rope(config[name], name);
    rope.MustBe("rope_type", "default");
    rope.MustBe("type", "default");
    rope.MustBe("partial_rotary_factor", 1);
    rope.MustBeAbsent("factor");
    for (const auto& [key, value] : config[name].items()) {
      if (value.is_object()) rope.Wrong(key, "has parameters of its own for a type of layers, which is not supported");
    }
    spec->set_rope_theta(rope.Number("rope_theta", spec->rope_theta(), 1, 1e12));
    if (!rope.status().ok()) fields->Wrong(rope.status().message(), "");
  }
}

void ReadBert(JsonFields* fields, v1::ModelSpec* spec) {
  spec->set_layers(fields->Count("num_hidden_layers"));
  spec->set_hidden_size(fields->Count("hidden_size"));
  spec->set_heads(fields->Count("num_attention_heads"));
  spec->set_kv_heads(spec->heads());
  spec->set_context(fields->Count("max_position_embeddings"));
  spec->set_intermediate_size(fields->Count("intermediate_size"));
  spec->set_norm_epsilon(fields->Number("layer_norm_eps", 1e-12, 1e-30, 1));
  spec->set_dropout(fields->Number("hidden_dropout_prob", 0.1, 0, 0.999));
  spec->set_tied_embeddings(fields->Flag("tie_word_embeddings", true));
  spec->set_bias(true);
  fields->MustBe("hidden_act", "gelu");
  fields->MustBe("type_vocab_size", 2);
  fields->MustBe("position_embedding_type", "absolute");
  fields->MustBe("is_decoder", false);
  fields->MustBe("add_cross_attention", false);
}

// lstm and cnn.
void ReadCausalStack(JsonFields* fields, v1::ModelSpec* spec) {
  spec->set_layers(fields->Count("num_hidden_layers"));
  spec->set_hidden_size(fields->Count("hidden_size"));
  if (spec->family() == "cnn") spec->set_kernel_size(fields->Count("kernel_size"));
  spec->set_context(fields->Count("max_position_embeddings"));
  spec->set_norm_epsilon(fields->Number("layer_norm_eps", 1e-5, 1e-30, 1));
  spec->set_dropout(fields->Number("dropout", 0, 0, 0.999));
  spec->set_tied_embeddings(fields->Flag("tie_word_embeddings", true));
  spec->set_bias(true);
}

Json IdOrNull(std::optional<uint32_t> token) { return token.has_value() ? Json(*token) : Json(nullptr); }

}  // namespace

std::string PrintConfig(const Configuration& configuration) {
  const v1::ModelSpec& spec = configuration.spec;
  const Family& family = *FindFamily(&Family::name, spec.family());
  const bool scalar = configuration.head == Head::kScalar;
  Json json;
  json["architectures"] = {absl::StrCat(family.architecture, scalar ? kClassifier : family.causal)};
  json["model_type"] = family.model_type;
  json["vocab_size"] = configuration.vocab_size;
  if (spec.family() == "gpt2") {
    json["n_positions"] = spec.context();
    json["n_ctx"] = spec.context();
    json["n_embd"] = spec.hidden_size();
    json["n_layer"] = spec.layers();
    json["n_head"] = spec.heads();
    json["n_inner"] = spec.intermediate_size();
    json["activation_function"] = "gelu_new";
    json["layer_norm_epsilon"] = spec.norm_epsilon();
    json["resid_pdrop"] = spec.dropout();
    json["embd_pdrop"] = spec.dropout();
    json["attn_pdrop"] = spec.dropout();
    if (!spec.bias()) json["bias"] = false;
  } else if (IsEncoder(spec.family())) {
    json["max_position_embeddings"] = spec.context();
    json["hidden_size"] = spec.hidden_size();
    json["num_hidden_layers"] = spec.layers();
    json["num_attention_heads"] = spec.heads();
    json["intermediate_size"] = spec.intermediate_size();
    json["hidden_act"] = "gelu";
    json["layer_norm_eps"] = spec.norm_epsilon();
    json["hidden_dropout_prob"] = spec.dropout();
    json["attention_probs_dropout_prob"] = spec.dropout();
    json["type_vocab_size"] = 2;
    json["position_embedding_type"] = "absolute";
  } else if (IsCausalStack(spec.family())) {
    json["max_position_embeddings"] = spec.context();
    json["hidden_size"] = spec.hidden_size();
    json["num_hidden_layers"] = spec.layers();
    if (spec.has_kernel_size()) json["kernel_size"] = spec.kernel_size();
    json["layer_norm_eps"] = spec.norm_epsilon();
    json["dropout"] = spec.dropout();
  } else {
    json["max_position_embeddings"] = spec.context();
    json["hidden_size"] = spec.hidden_size();
    json["num_hidden_layers"] = spec.layers();
    json["num_attention_heads"] = spec.heads();
    json["num_key_value_heads"] = spec.kv_heads();
    json["head_dim"] = spec.hidden_size() / spec.heads();
    json["intermediate_size"] = spec.intermediate_size();
    json["hidden_act"] = "silu";
    json["rms_norm_eps"] = spec.norm_epsilon();
    json["rope_theta"] = spec.rope_theta();
    json["rope_parameters"] = {{"rope_theta", spec.rope_theta()}, {"rope_type", "default"}};
    if (spec.family() == "llama") {
      json["attention_bias"] = false;
      json["mlp_bias"] = false;
    }
    if (family.sliding_window != 0) {
      json["sliding_window"] = spec.has_sliding_window() ? Json(spec.sliding_window()) : Json(nullptr);
    }
    if (spec.family() == "qwen2") {
      json["use_sliding_window"] = spec.has_sliding_window();
      json["max_window_layers"] = spec.has_sliding_window() ? 0 : spec.layers();
    }
    json["attention_dropout"] = spec.dropout();
  }
  json["initializer_range"] = spec.init_std();
  json["tie_word_embeddings"] = spec.tied_embeddings();
  json["bos_token_id"] = IdOrNull(configuration.end_of_text);
  json["eos_token_id"] = IdOrNull(configuration.end_of_text);
  if (scalar || configuration.padding.has_value()) json["pad_token_id"] = IdOrNull(configuration.padding);
  if (scalar) {
    // As many labels as there are names.
    json["id2label"] = {{"0", "LABEL_0"}};
    json["label2id"] = {{"LABEL_0", 0}};
  }
  json["use_cache"] = true;
  json["dtype"] = DtypeName(configuration.dtype);
  json["torch_dtype"] = DtypeName(configuration.dtype);
  // What products were computed in while training.
  json["millrace_precision"] = spec.precision();
  return json.dump(2) + "\n";
}

std::string PrintGenerationConfig(const Configuration& configuration) {
  Json json;
  json["do_sample"] = true;
  json["bos_token_id"] = IdOrNull(configuration.end_of_text);
  json["eos_token_id"] = IdOrNull(configuration.end_of_text);
  if (configuration.padding.has_value()) json["pad_token_id"] = *configuration.padding;
  return json.dump(2) + "\n";
}

absl::StatusOr<Configuration> ParseConfig(absl::string_view json, absl::string_view file) {
  MILLRACE_ASSIGN_OR_RETURN(const Json config, ParseJsonObject(json, file));
  JsonFields fields(config, file);
  if (!fields.Has("model_type") || !config["model_type"].is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": model_type is missing"));
  }
  const std::string type = config["model_type"].get<std::string>();
  Configuration configuration;
  v1::ModelSpec& spec = configuration.spec;
  const Family* const family = FindFamily(&Family::model_type, type);
  if (family == nullptr) {
    std::vector<std::string> known;
    for (const Family& each : kFamilies) known.push_back(absl::StrCat("\"", each.model_type, "\""));
    return absl::InvalidArgumentError(absl::StrCat(file, ": model_type \"", type.substr(0, 60), "\" is not supported; ",
                                                   absl::StrJoin(known, ", "), " are"));
  }
  spec.set_family(family->name);
  spec.set_rope_theta(10000);
  if (spec.family() == "gpt2") {
    ReadGpt2(&fields, &spec);
  } else if (IsEncoder(spec.family())) {
    ReadBert(&fields, &spec);
  } else if (IsCausalStack(spec.family())) {
    ReadCausalStack(&fields, &spec);
  } else {
    ReadLlama(&fields, config, *family, &spec);
  }
  configuration.vocab_size = fields.Count("vocab_size");
  spec.set_init_std(fields.Number("initializer_range", 0.02, 0, 10));
  spec.set_precision("f32");
  if (fields.Has("millrace_precision")) {
    if (config["millrace_precision"] == "bf16") {
      spec.set_precision("bf16");
    } else {
      fields.MustBe("millrace_precision", "f32");
    }
  }
  configuration.end_of_text = fields.Token("eos_token_id");
  configuration.padding = fields.Token("pad_token_id");
  configuration.head = ReadHead(&fields, config);
  for (const char* name : {"torch_dtype", "dtype"}) {
    if (!fields.Has(name)) continue;
    for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      if (config[name] == DtypeName(dtype)) configuration.dtype = dtype;
    }
  }
  MILLRACE_RETURN_IF_ERROR(fields.status());
  return configuration;
}

}  // namespace millrace::model
