#include "model/formats/config_json.h"

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::model {
namespace {

using Json = nlohmann::ordered_json;

// How architectures with a head for labels end.
constexpr char kClassifier[] = "ForSequenceClassification";

// Reads fields of one object; the first mistake is kept.
class Fields {
 public:
  Fields(const Json& object, absl::string_view file) : object_(object), file_(file) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }

  uint32_t Count(const char* name, uint32_t fallback = 0) {
    if (!Has(name)) {
      if (fallback == 0) Wrong(name, "is missing");
      return fallback;
    }
    const Json& value = object_[name];
    if (!value.is_number_integer() || value < 1 || value > std::numeric_limits<int32_t>::max()) {
      Wrong(name, absl::StrCat("must be a whole number above 0, not ", Shown(value)));
      return 1;
    }
    return value.get<uint32_t>();
  }
  double Number(const char* name, double fallback, double min, double max) {
    if (!Has(name)) return fallback;
    const Json& value = object_[name];
    if (!value.is_number() || !(value.get<double>() >= min) || !(value.get<double>() <= max)) {
      Wrong(name, absl::StrCat("must be a number between ", min, " and ", max, ", not ", Shown(value)));
      return fallback;
    }
    return value.get<double>();
  }
  bool Flag(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_boolean()) {
      Wrong(name, absl::StrCat("must be true or false, not ", Shown(object_[name])));
      return fallback;
    }
    return object_[name].get<bool>();
  }
  // Nothing where no single token is named.
  std::optional<uint32_t> Token(const char* name) const {
    if (!Has(name)) return std::nullopt;
    const Json& value = object_[name];
    if (!value.is_number_integer() || value < 0 || value >= std::numeric_limits<int32_t>::max()) return std::nullopt;
    return value.get<uint32_t>();
  }
  // What changes the computation in a way that is not supported.
  void MustBe(const char* name, const Json& only) {
    if (Has(name) && object_[name] != only) {
      Wrong(name, absl::StrCat("is ", Shown(object_[name]), ", which is not supported; ", Shown(only), " is"));
    }
  }
  void MustBeAbsent(const char* name) {
    if (Has(name)) Wrong(name, absl::StrCat("is ", Shown(object_[name]), ", which is not supported"));
  }
  void Wrong(absl::string_view name, absl::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(file_, ": ", name, " ", what));
  }
  const absl::Status& status() const { return status_; }

 private:
  static std::string Shown(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
  }

  const Json& object_;
  const std::string file_;
  absl::Status status_;
};

Head ReadHead(Fields* fields, const Json& config) {
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

void ReadGpt2(Fields* fields, v1::ModelSpec* spec) {
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

void ReadLlama(Fields* fields, const Json& config, v1::ModelSpec* spec) {
  spec->set_layers(fields->Count("num_hidden_layers"));
  spec->set_hidden_size(fields->Count("hidden_size"));
  spec->set_heads(fields->Count("num_attention_heads"));
  spec->set_kv_heads(fields->Count("num_key_value_heads", spec->heads()));
  spec->set_context(fields->Count("max_position_embeddings"));
  spec->set_intermediate_size(fields->Count("intermediate_size"));
  spec->set_norm_epsilon(fields->Number("rms_norm_eps", 1e-6, 1e-30, 1));
  spec->set_dropout(fields->Number("attention_dropout", 0, 0, 0.999));
  spec->set_tied_embeddings(fields->Flag("tie_word_embeddings", false));
  spec->set_bias(false);
  fields->MustBe("hidden_act", "silu");
  fields->MustBe("attention_bias", false);
  fields->MustBe("mlp_bias", false);
  fields->MustBe("pretraining_tp", 1);
  if (spec->heads() > 0) fields->MustBe("head_dim", spec->hidden_size() / spec->heads());
  spec->set_rope_theta(fields->Number("rope_theta", 10000, 1, 1e12));
  // Since transformers 5 theta lies in rope_parameters; before, rope_scaling was null for the plain kind.
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields->Has(name)) continue;
    if (!config[name].is_object()) {
      fields->Wrong(name, "must be an object");
      continue;
    }
    Fields rope(config[name], name);
    rope.MustBe("rope_type", "default");
    rope.MustBe("type", "default");
    rope.MustBeAbsent("factor");
    spec->set_rope_theta(rope.Number("rope_theta", spec->rope_theta(), 1, 1e12));
    if (!rope.status().ok()) fields->Wrong(rope.status().message(), "");
  }
}

}  // namespace

std::string PrintConfig(const Configuration& configuration) {
  const v1::ModelSpec& spec = configuration.spec;
  const bool scalar = configuration.head == Head::kScalar;
  Json json;
  if (spec.family() == "gpt2") {
    json["architectures"] = {absl::StrCat("GPT2", scalar ? kClassifier : "LMHeadModel")};
    json["model_type"] = "gpt2";
    json["vocab_size"] = configuration.vocab_size;
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
  } else {
    json["architectures"] = {absl::StrCat("Llama", scalar ? kClassifier : "ForCausalLM")};
    json["model_type"] = "llama";
    json["vocab_size"] = configuration.vocab_size;
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
    json["attention_bias"] = false;
    json["mlp_bias"] = false;
    json["attention_dropout"] = spec.dropout();
  }
  json["initializer_range"] = spec.init_std();
  json["tie_word_embeddings"] = spec.tied_embeddings();
  const auto id = [](std::optional<uint32_t> token) { return token.has_value() ? Json(*token) : Json(nullptr); };
  json["bos_token_id"] = id(configuration.end_of_text);
  json["eos_token_id"] = id(configuration.end_of_text);
  if (scalar || configuration.padding.has_value()) json["pad_token_id"] = id(configuration.padding);
  if (scalar) {
    // As many labels as there are names.
    json["id2label"] = {{"0", "LABEL_0"}};
    json["label2id"] = {{"LABEL_0", 0}};
  }
  json["use_cache"] = true;
  // What products were computed in while training; the weights are f32.
  json["torch_dtype"] = "float32";
  json["millrace_precision"] = spec.precision();
  return json.dump(2) + "\n";
}

std::string PrintGenerationConfig() {
  Json json;
  json["_from_model_config"] = true;
  json["do_sample"] = true;
  return json.dump(2) + "\n";
}

absl::StatusOr<Configuration> ParseConfig(absl::string_view json, absl::string_view file) {
  // Objects within objects are few here; a deep nest would exhaust the parser's stack.
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth < 32; };
  const Json config = Json::parse(json.begin(), json.end(), shallow, /*allow_exceptions=*/false);
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(file, " is not a JSON object"));
  Fields fields(config, file);
  if (!fields.Has("model_type") || !config["model_type"].is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": model_type is missing"));
  }
  const std::string type = config["model_type"].get<std::string>();
  Configuration configuration;
  v1::ModelSpec& spec = configuration.spec;
  if (type == "gpt2") {
    spec.set_family("gpt2");
    spec.set_rope_theta(10000);
    ReadGpt2(&fields, &spec);
  } else if (type == "llama") {
    spec.set_family("llama");
    ReadLlama(&fields, config, &spec);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": model_type \"", type.substr(0, 60), "\" is not supported; \"gpt2\" and \"llama\" are"));
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
  MILLRACE_RETURN_IF_ERROR(fields.status());
  return configuration;
}

}  // namespace millrace::model
