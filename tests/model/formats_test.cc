// Model folders: config.json and safetensors, written and read back, and everything that is refused by name.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/families/decoder.h"
#include "model/formats/config_json.h"
#include "model/formats/hugging_face.h"
#include "model/tiny_models.h"
#include "nlohmann/json.hpp"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::model {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// ---- config.json ----

json GoldenConfig(const std::string& family) {
  std::ifstream stream(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/model/", family, "/config.json"));
  return json::parse(stream);
}

TEST(ConfigJson, ComesBackAsItWasWritten) {
  for (const char* family : {"gpt2", "llama", "mistral", "qwen2", "bert", "lstm", "cnn"}) {
    for (const bool other : {false, true}) {
      Configuration written;
      written.spec = TinySpec(family, other ? "bf16" : "f32");
      written.spec.set_dropout(other ? 0.25 : 0);
      written.spec.set_norm_epsilon(other ? 1e-6 : 1e-5);
      written.spec.set_tied_embeddings(other);
      if (IsDecoder(family) && written.spec.family() != "gpt2") written.spec.set_rope_theta(other ? 500000 : 10000);
      written.spec.clear_sliding_window();
      if (other && written.spec.family() == "mistral") written.spec.set_sliding_window(5);
      if (other && written.spec.family() == "qwen2") written.spec.set_sliding_window(4096);
      if (written.spec.has_kernel_size()) written.spec.set_kernel_size(other ? 7 : 1);
      if (other) written.dtype = Dtype::kF16;
      if (written.spec.family() == "gpt2") written.spec.set_bias(other);
      written.vocab_size = 300;
      if (other) written.end_of_text = 0;
      if (other) written.padding = 3;
      written.head = (written.spec.family() == "gpt2") == other ? Head::kScalar : Head::kLanguage;
      const auto read = ParseConfig(PrintConfig(written), "config.json");
      ASSERT_OK(read);
      EXPECT_EQ(read->spec.DebugString(), written.spec.DebugString());
      EXPECT_EQ(read->vocab_size, 300u);
      EXPECT_EQ(read->end_of_text, written.end_of_text);
      EXPECT_EQ(read->padding, written.padding);
      EXPECT_EQ(read->head, written.head);
      EXPECT_EQ(read->dtype, written.dtype);
    }
  }
}

TEST(ConfigJson, SaysWhatTransformersReads) {
  Configuration configuration;
  configuration.spec = TinySpec("llama");
  configuration.vocab_size = 300;
  const json llama = json::parse(PrintConfig(configuration));
  EXPECT_EQ(llama["architectures"][0], "LlamaForCausalLM");
  EXPECT_EQ(llama["num_key_value_heads"], 2);
  EXPECT_EQ(llama["head_dim"], 6);
  EXPECT_TRUE(llama["eos_token_id"].is_null());
  // Every field that changes what the golden's model computes is one that we write.
  for (const char* field : {"hidden_act", "attention_bias", "mlp_bias", "rms_norm_eps", "tie_word_embeddings",
                            "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers"}) {
    EXPECT_TRUE(llama.contains(field) && GoldenConfig("llama").contains(field)) << field;
  }
  configuration.spec = TinySpec("gpt2");
  const json gpt2 = json::parse(PrintConfig(configuration));
  EXPECT_EQ(gpt2["architectures"][0], "GPT2LMHeadModel");
  EXPECT_EQ(gpt2["activation_function"], "gelu_new");
  for (const char* field : {"n_embd", "n_head", "n_inner", "n_layer", "n_positions", "layer_norm_epsilon"}) {
    EXPECT_TRUE(gpt2.contains(field) && GoldenConfig("gpt2").contains(field)) << field;
  }
  // Of what moved between versions of transformers each has its place.
  EXPECT_EQ(llama["rope_theta"], 10000);
  EXPECT_EQ(llama["rope_parameters"], json::parse(R"({"rope_theta": 10000.0, "rope_type": "default"})"));
  EXPECT_EQ(llama["dtype"], "float32");
  EXPECT_EQ(llama["torch_dtype"], "float32");
  EXPECT_EQ(gpt2["n_ctx"], gpt2["n_positions"]);
  configuration.dtype = Dtype::kBf16;
  EXPECT_EQ(json::parse(PrintConfig(configuration))["dtype"], "bfloat16");
}

TEST(ConfigJson, SaysOfWindowsWhatDefaultsWouldSayWrongly) {
  Configuration configuration;
  configuration.vocab_size = 300;
  configuration.spec = TinySpec("mistral");
  json written = json::parse(PrintConfig(configuration));
  EXPECT_EQ(written["architectures"][0], "MistralForCausalLM");
  EXPECT_EQ(written["sliding_window"], 21);
  EXPECT_FALSE(written.contains("attention_bias"));
  configuration.spec.clear_sliding_window();
  written = json::parse(PrintConfig(configuration));
  EXPECT_TRUE(written.contains("sliding_window") && written["sliding_window"].is_null());  // absent: 4096
  configuration.spec = TinySpec("qwen2");
  written = json::parse(PrintConfig(configuration));
  EXPECT_EQ(written["architectures"][0], "Qwen2ForCausalLM");
  EXPECT_EQ(written["use_sliding_window"], false);
  configuration.spec.set_sliding_window(7);
  written = json::parse(PrintConfig(configuration));
  EXPECT_EQ(written["use_sliding_window"], true);
  EXPECT_EQ(written["sliding_window"], 7);
  EXPECT_EQ(written["max_window_layers"], 0);  // absent: the first 28 have none
}

TEST(GenerationConfigJson, SaysWhereATextEnds) {
  Configuration configuration;
  json written = json::parse(PrintGenerationConfig(configuration));
  EXPECT_TRUE(written.contains("eos_token_id") && written["eos_token_id"].is_null());
  configuration.end_of_text = 7;
  configuration.padding = 3;
  written = json::parse(PrintGenerationConfig(configuration));
  EXPECT_EQ(written["eos_token_id"], 7);
  EXPECT_EQ(written["bos_token_id"], 7);
  EXPECT_EQ(written["pad_token_id"], 3);
}

TEST(ConfigJson, OfAScalarHeadIsAClassifierOfOneLabel) {
  Configuration configuration;
  configuration.vocab_size = 300;
  configuration.head = Head::kScalar;
  configuration.padding = 7;
  for (const char* family : {"gpt2", "llama"}) {
    configuration.spec = TinySpec(family);
    json written = json::parse(PrintConfig(configuration));
    EXPECT_EQ(
        written["architectures"],
        json::array({absl::StrCat(family == std::string("gpt2") ? "GPT2" : "Llama", "ForSequenceClassification")}));
    EXPECT_EQ(written["id2label"], json::parse(R"({"0": "LABEL_0"})"));
    EXPECT_EQ(written["label2id"], json::parse(R"({"LABEL_0": 0})"));
    EXPECT_EQ(written["pad_token_id"], 7);
    // Older files count the labels.
    written.erase("id2label");
    written["num_labels"] = 1;
    EXPECT_EQ(ParseConfig(written.dump(), "x")->head, Head::kScalar);
    const auto refused = [&](const char* says) {
      const auto read = ParseConfig(written.dump(), "x");
      EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(read.status().message()), HasSubstr(says));
    };
    written["num_labels"] = 3;
    refused("num_labels is 3");
    written.erase("num_labels");
    refused("id2label must have one entry");  // transformers takes two labels for meant
    written["id2label"] = {{"0", "NO"}, {"1", "YES"}};
    refused("id2label must have one entry");
    written["id2label"] = 5;
    refused("id2label must have one entry");
  }
}

TEST(ConfigJson, FillsInTransformersDefaults) {
  const auto gpt2 = ParseConfig(
      R"({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 4, "vocab_size": 9})", "x");
  ASSERT_OK(gpt2);
  EXPECT_EQ(gpt2->spec.intermediate_size(), 32u);
  EXPECT_EQ(gpt2->spec.norm_epsilon(), 1e-5);
  EXPECT_EQ(gpt2->spec.dropout(), 0.1);
  EXPECT_TRUE(gpt2->spec.tied_embeddings());
  EXPECT_TRUE(gpt2->spec.bias());
  EXPECT_FALSE(gpt2->end_of_text.has_value());
  const auto llama = ParseConfig(
      R"({"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
          "max_position_embeddings": 4, "intermediate_size": 12, "vocab_size": 9, "eos_token_id": 2})",
      "x");
  ASSERT_OK(llama);
  EXPECT_EQ(llama->spec.kv_heads(), 2u);
  EXPECT_EQ(llama->spec.norm_epsilon(), 1e-6);
  EXPECT_EQ(llama->spec.rope_theta(), 10000);
  EXPECT_FALSE(llama->spec.tied_embeddings());
  EXPECT_EQ(llama->end_of_text, 2u);
  json mistral = json::parse(
      R"({"model_type": "mistral", "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 32,
          "max_position_embeddings": 4, "intermediate_size": 12, "vocab_size": 9})");
  EXPECT_EQ(ParseConfig(mistral.dump(), "x")->spec.kv_heads(), 8u);
  EXPECT_EQ(ParseConfig(mistral.dump(), "x")->spec.sliding_window(), 4096u);
  mistral["num_key_value_heads"] = nullptr;
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(ParseConfig(mistral.dump(), "x")->spec.kv_heads(), 32u);
  EXPECT_FALSE(ParseConfig(mistral.dump(), "x")->spec.has_sliding_window());
}

TEST(ConfigJson, TakesQwen2sWindowForMeantOnlyWhereItIsUsed) {
  json config = GoldenConfig("qwen2");
  config["sliding_window"] = 4;
  EXPECT_FALSE(ParseConfig(config.dump(), "x")->spec.has_sliding_window());
  config["use_sliding_window"] = true;
  EXPECT_FALSE(ParseConfig(config.dump(), "x")->spec.has_sliding_window());  // layer_types says that none has
  config["layer_types"] = {"sliding_attention", "sliding_attention"};
  EXPECT_EQ(ParseConfig(config.dump(), "x")->spec.sliding_window(), 4u);
  config["layer_types"] = {"full_attention", "sliding_attention"};
  EXPECT_THAT(std::string(ParseConfig(config.dump(), "x").status().message()), HasSubstr("layer_types gives some"));
  config["layer_types"] = {"sliding_attention"};
  EXPECT_THAT(std::string(ParseConfig(config.dump(), "x").status().message()), HasSubstr("a type for each layer"));
  config.erase("layer_types");
  EXPECT_FALSE(ParseConfig(config.dump(), "x")->spec.has_sliding_window());  // max_window_layers is 28
  config["max_window_layers"] = 0;
  EXPECT_EQ(ParseConfig(config.dump(), "x")->spec.sliding_window(), 4u);
  config["max_window_layers"] = 1;
  EXPECT_THAT(std::string(ParseConfig(config.dump(), "x").status().message()),
              HasSubstr("max_window_layers gives some"));
}

TEST(ConfigJson, FindsThetaWhereverItLies) {
  json config = GoldenConfig("llama");
  config["rope_parameters"]["rope_theta"] = 123.0;
  EXPECT_EQ(ParseConfig(config.dump(), "x")->spec.rope_theta(), 123);
  // As transformers wrote it before version 5.
  config.erase("rope_parameters");
  config["rope_theta"] = 456.0;
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(ParseConfig(config.dump(), "x")->spec.rope_theta(), 456);
}

struct Refusal {
  const char* name;
  const char* family;
  json change;  // null values are set too; "-": erased
  const char* says;
};

class RefusedConfig : public ::testing::TestWithParam<Refusal> {};
INSTANTIATE_TEST_SUITE_P(
    ConfigJson, RefusedConfig,
    ::testing::Values(
        Refusal{"Activation", "gpt2", {{"activation_function", "relu"}}, "activation_function is \"relu\""},
        Refusal{"ExactGelu", "gpt2", {{"activation_function", "gelu"}}, "activation_function"},
        Refusal{"ScaleByLayer", "gpt2", {{"scale_attn_by_inverse_layer_idx", true}}, "scale_attn_by_inverse_layer_idx"},
        Refusal{"UnscaledScores", "gpt2", {{"scale_attn_weights", false}}, "scale_attn_weights"},
        Refusal{"CrossAttention", "gpt2", {{"add_cross_attention", true}}, "add_cross_attention"},
        Refusal{"NoLayers", "gpt2", {{"n_layer", "-"}}, "n_layer is missing"},
        Refusal{"NullLayers", "gpt2", {{"n_layer", nullptr}}, "n_layer is missing"},
        Refusal{"NegativeLayers", "gpt2", {{"n_layer", -1}}, "n_layer must be a whole number above 0, not -1"},
        Refusal{"ZeroHeads", "gpt2", {{"n_head", 0}}, "n_head"},
        Refusal{"HugeWidth", "gpt2", {{"n_embd", uint64_t{1} << 40}}, "n_embd"},
        Refusal{"HugestWidth", "gpt2", {{"n_embd", std::numeric_limits<uint64_t>::max()}}, "n_embd"},
        Refusal{"FractionOfALayer", "gpt2", {{"n_layer", 1.5}}, "n_layer"},
        Refusal{"TextForANumber",
                "gpt2",
                {{"n_positions", "12"}},
                "n_positions must be a whole number above 0, not \"12\""},
        Refusal{"ListForANumber", "gpt2", {{"layer_norm_epsilon", {1}}}, "layer_norm_epsilon"},
        Refusal{"EpsilonOfZero", "gpt2", {{"layer_norm_epsilon", 0}}, "layer_norm_epsilon"},
        Refusal{"DropsAll", "gpt2", {{"resid_pdrop", 1}}, "resid_pdrop"},
        Refusal{"NumberForAFlag", "gpt2", {{"tie_word_embeddings", 1}}, "tie_word_embeddings must be true or false"},
        Refusal{"NoVocabulary", "gpt2", {{"vocab_size", "-"}}, "vocab_size is missing"},
        Refusal{"OtherPrecision", "gpt2", {{"millrace_precision", "f8"}}, "millrace_precision"},
        Refusal{"NoType", "gpt2", {{"model_type", "-"}}, "model_type is missing"},
        Refusal{"TypeOfANumber", "gpt2", {{"model_type", 2}}, "model_type is missing"},
        Refusal{
            "Gemma",
            "llama",
            {{"model_type", "gemma"}},
            R"(model_type "gemma" is not supported; "gpt2", "llama", "mistral", "qwen2", "bert", "millrace_lstm", "millrace_cnn" are)"},
        Refusal{"MistralOtherHeadSize", "mistral", {{"head_dim", 8}}, "head_dim is 8"},
        Refusal{"MistralWindowOfText", "mistral", {{"sliding_window", "4"}}, "sliding_window"},
        Refusal{"Qwen2Yarn", "qwen2", {{"rope_parameters", {{"rope_type", "yarn"}}}}, "rope_type is \"yarn\""},
        Refusal{"RopeByLayerType",
                "qwen2",
                {{"rope_parameters", {{"full_attention", {{"rope_theta", 5.0}}}}}},
                "full_attention has parameters of its own"},
        Refusal{"PartOfAHeadTurned", "llama", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is 0.5"},
        Refusal{"LlamaActivation", "llama", {{"hidden_act", "gelu"}}, "hidden_act"},
        Refusal{"AttentionBias", "llama", {{"attention_bias", true}}, "attention_bias is true"},
        Refusal{"MlpBias", "llama", {{"mlp_bias", true}}, "mlp_bias"},
        Refusal{"TensorParallel", "llama", {{"pretraining_tp", 2}}, "pretraining_tp"},
        Refusal{"OtherHeadSize", "llama", {{"head_dim", 8}}, "head_dim is 8"},
        Refusal{"LinearRope", "llama", {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}, "rope_scaling"},
        Refusal{"Llama3Rope",
                "llama",
                {{"rope_parameters", {{"rope_type", "llama3"}, {"factor", 8.0}}}},
                "rope_parameters"},
        Refusal{"RopeFactorAlone", "llama", {{"rope_scaling", {{"factor", 2.0}}}}, "factor"},
        Refusal{"RopeThatIsText", "llama", {{"rope_scaling", "linear"}}, "rope_scaling must be an object"},
        Refusal{"ThetaOfZero", "llama", {{"rope_parameters", {{"rope_theta", 0}}}}, "rope_theta"},
        Refusal{"NoMlp", "llama", {{"intermediate_size", "-"}}, "intermediate_size is missing"},
        Refusal{"BertActivation", "bert", {{"hidden_act", "gelu_new"}}, "hidden_act is \"gelu_new\""},
        Refusal{"BertRelativePositions", "bert", {{"position_embedding_type", "relative_key"}}, "position_embedding_type"},
        Refusal{"BertThirdPiece", "bert", {{"type_vocab_size", 3}}, "type_vocab_size is 3"},
        Refusal{"BertThatDecodes", "bert", {{"is_decoder", true}}, "is_decoder"},
        Refusal{"LstmWithoutLayers", "lstm", {{"num_hidden_layers", "-"}}, "num_hidden_layers is missing"},
        Refusal{"CnnThatSeesNothing", "cnn", {{"kernel_size", 0}}, "kernel_size must be a whole number above 0"},
        Refusal{"CnnWithoutKernel", "cnn", {{"kernel_size", "-"}}, "kernel_size is missing"},
        Refusal{"NegativeKvHeads", "llama", {{"num_key_value_heads", -2}}, "num_key_value_heads"}),
    [](const auto& info) { return info.param.name; });

TEST_P(RefusedConfig, NamesFileAndField) {
  json config = GoldenConfig(GetParam().family);
  ASSERT_OK(ParseConfig(config.dump(), "x"));
  for (const auto& [key, value] : GetParam().change.items()) {
    if (value == "-") {
      config.erase(key);
    } else {
      config[key] = value;
    }
  }
  const auto read = ParseConfig(config.dump(), "folder/config.json");
  EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(read.status().message()), AllOf(HasSubstr("folder/config.json"), HasSubstr(GetParam().says)));
}

TEST(ConfigJson, RefusesWhatIsNoObject) {
  for (const std::string& text : {std::string(), std::string("[]"), std::string("{"), std::string("gpt2"),
                                  std::string("\xff\xfe"), std::string(100'000, '['), std::string("{\"a\":1}{}")}) {
    EXPECT_THAT(std::string(ParseConfig(text, "x").status().message()), HasSubstr("x is not a JSON object"));
  }
  // A deep nest in a field that nobody reads exhausts no stack.
  json config = GoldenConfig("gpt2");
  std::string text = config.dump();
  text.back() = ',';
  absl::StrAppend(&text, "\"deep\":", std::string(100'000, '['), std::string(100'000, ']'), "}");
  EXPECT_OK(ParseConfig(text, "x"));
}

// ---- weights ----

constexpr uint32_t kVocab = 11;

struct File {
  struct Tensor {
    std::string name, dtype, bytes;
    std::vector<int64_t> shape;
  };
  std::vector<Tensor> tensors;

  Tensor& Get(const std::string& name) {
    for (Tensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return tensors[0];
  }
  void Drop(const std::string& name) {
    std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
  }
  void Add(const std::string& name, std::vector<int64_t> shape) {
    size_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
    tensors.push_back({name, "F32", std::string(4 * count, '\0'), std::move(shape)});
  }
  std::string Bytes() const {
    SafetensorsHeader header;
    std::string data;
    for (const Tensor& tensor : tensors) {
      SafetensorsEntry entry;
      entry.name = tensor.name;
      entry.dtype = tensor.dtype;
      entry.shape = tensor.shape;
      header.tensors.push_back(entry);
      data += tensor.bytes;
    }
    return LayOutSafetensors(&header) + data;
  }
};

std::string F32(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

class Weights : public ::testing::Test {
 protected:
  void Use(const v1::ModelSpec& spec) {
    network_ = NewNetwork(spec, kVocab);
    weights_ = RandomWeights(network_->tensors(), 1);
    file_.tensors.clear();
    for (const TensorSpec& tensor : network_->tensors().tensors()) {
      const float* const from = weights_.data() + tensor.offset;
      file_.tensors.push_back({tensor.name, "F32", F32({from, from + tensor.size}), tensor.shape});
    }
  }
  void SetUp() override { Use(TinySpec("gpt2")); }

  absl::Status Read() {
    memory_.assign(weights_.size(), 0.0f);
    return ReadWeights(folder_.path(), network_->tensors(), memory_.data());
  }
  // Writes file_ as model.safetensors and reads it.
  absl::Status ReadBack() {
    folder_.Write("model.safetensors", file_.Bytes());
    return Read();
  }
  void ExpectSame() {
    for (const TensorSpec& tensor : network_->tensors().tensors()) {
      EXPECT_EQ(0, std::memcmp(memory_.data() + tensor.offset, weights_.data() + tensor.offset,
                               static_cast<size_t>(tensor.size) * 4))
          << tensor.name;
    }
  }
  std::string Refused() {
    const absl::Status status = ReadBack();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
    return std::string(status.message());
  }

  TemporaryFolder folder_;
  std::unique_ptr<Network> network_;
  std::vector<float> weights_, memory_;
  File file_;
};

TEST_F(Weights, OfAScalarHeadComeBackAsTheyWereWritten) {
  for (const char* family : {"gpt2", "llama", "mistral", "qwen2"}) {
    const TemporaryFolder folder;
    Configuration configuration;
    configuration.spec = TinySpec(family);
    configuration.vocab_size = kVocab;
    configuration.head = Head::kScalar;
    const auto network = *CreateNetwork(configuration.spec, kVocab, Head::kScalar);
    const std::vector<float> weights = RandomWeights(network->tensors(), 3);
    ASSERT_OK(WriteModel(folder.path(), configuration, network->tensors(), weights.data()));
    EXPECT_EQ(ReadConfig(folder.path())->head, Head::kScalar);
    const auto file = SafetensorsFile::Open(folder / "model.safetensors");
    ASSERT_OK(file);
    const SafetensorsEntry* const score = (*file)->header().Find("score.weight");
    ASSERT_NE(score, nullptr);
    EXPECT_EQ(score->shape, (std::vector<int64_t>{1, 24}));
    std::vector<float> read(weights.size(), 0.0f);
    ASSERT_OK(ReadWeights(folder.path(), network->tensors(), read.data()));
    for (const TensorSpec& tensor : network->tensors().tensors()) {
      EXPECT_EQ(0, std::memcmp(read.data() + tensor.offset, weights.data() + tensor.offset,
                               static_cast<size_t>(tensor.size) * sizeof(float)))
          << tensor.name;
    }
    // Neither kind of folder passes for the other.
    const auto language = *CreateNetwork(configuration.spec, kVocab);
    EXPECT_THAT(std::string(ReadWeights(folder.path(), language->tensors(), read.data()).message()),
                HasSubstr("'score.weight' is not one of this architecture's"));
    configuration.head = Head::kLanguage;
    const std::vector<float> of_language = RandomWeights(language->tensors(), 3);
    ASSERT_OK(WriteModel(folder.path(), configuration, language->tensors(), of_language.data()));
    EXPECT_THAT(std::string(ReadWeights(folder.path(), network->tensors(), read.data()).message()),
                HasSubstr("'score.weight' is missing"));
  }
}

TEST_F(Weights, ComeBackAsTheyWereWritten) {
  for (const char* family : {"gpt2", "llama", "mistral", "qwen2"}) {
    Use(TinySpec(family));
    // Bits that a detour through text or another type would lose.
    weights_[3] = -0.0f;
    weights_[4] = 1e-42f;
    weights_[5] = std::numeric_limits<float>::max();
    Configuration configuration;
    configuration.spec = TinySpec(family);
    configuration.vocab_size = kVocab;
    configuration.end_of_text = 1;
    ASSERT_OK(WriteModel(folder_.path(), configuration, network_->tensors(), weights_.data()));
    EXPECT_OK(Read());
    ExpectSame();
    const auto again = ReadConfig(folder_.path());
    ASSERT_OK(again);
    EXPECT_EQ(again->spec.DebugString(), configuration.spec.DebugString());
    EXPECT_EQ(again->end_of_text, 1u);
    EXPECT_EQ(folder_.Read("generation_config.json"), PrintGenerationConfig(configuration));
    const auto file = SafetensorsFile::Open(folder_ / "model.safetensors");
    ASSERT_OK(file);
    EXPECT_EQ((*file)->header().metadata.at("format"), "pt");
  }
}

TEST_F(Weights, OfHalfPrecisionAreWidenedExactly) {
  struct Half {
    uint16_t bits;
    float value;
  };
  const std::vector<Half> f16 = {{0x3E00, 1.5f},          {0xC000, -2.0f},         {0x7BFF, 65504.0f},
                                 {0x0001, 5.9604645e-8f}, {0x0400, 6.1035156e-5f}, {0x3555, 0.33325195f}};
  const std::vector<Half> bf16 = {
      {0x3FC0, 1.5f}, {0xC000, -2.0f}, {0x7F7F, 3.3895314e38f}, {0x0080, 1.17549435e-38f}, {0x3EAB, 0.33398438f}};
  for (const auto& [dtype, halves] : {std::pair("F16", f16), std::pair("BF16", bf16)}) {
    File::Tensor& gain = file_.Get("transformer.ln_f.weight");
    gain.dtype = dtype;
    gain.bytes.clear();
    for (int64_t i = 0; i < 24; ++i) {
      gain.bytes.append(reinterpret_cast<const char*>(&halves[static_cast<size_t>(i) % halves.size()].bits), 2);
    }
    ASSERT_OK(ReadBack());
    const TensorSpec& spec = network_->tensors()[network_->tensors().Find("transformer.ln_f.weight")];
    for (int64_t i = 0; i < 24; ++i) {
      EXPECT_EQ(memory_[static_cast<size_t>(spec.offset + i)], halves[static_cast<size_t>(i) % halves.size()].value)
          << dtype << " " << i;
    }
  }
}

TEST_F(Weights, MayLieInSeveralFiles) {
  File parts[2];
  json index;
  for (size_t i = 0; i < file_.tensors.size(); ++i) {
    parts[i % 2].tensors.push_back(file_.tensors[i]);
    index["weight_map"][file_.tensors[i].name] = i % 2 == 0 ? "model-1-of-2.safetensors" : "model-2-of-2.safetensors";
  }
  folder_.Write("model-1-of-2.safetensors", parts[0].Bytes());
  folder_.Write("model-2-of-2.safetensors", parts[1].Bytes());
  folder_.Write("model.safetensors.index.json", index.dump());
  EXPECT_OK(Read());
  ExpectSame();
  // In another file than the index says, in none that it says, twice in one, and gone.
  index["weight_map"]["transformer.wte.weight"] = "model-2-of-2.safetensors";
  folder_.Write("model.safetensors.index.json", index.dump());
  EXPECT_THAT(std::string(Read().message()),
              AllOf(HasSubstr("model-1-of-2.safetensors: tensor 'transformer.wte.weight' lies here"),
                    HasSubstr("model.safetensors.index.json says model-2-of-2.safetensors")));
  index["weight_map"].erase("transformer.wte.weight");
  folder_.Write("model.safetensors.index.json", index.dump());
  EXPECT_THAT(std::string(Read().message()), HasSubstr("'transformer.wte.weight' is not in model.safetensors.index"));
  index["weight_map"]["transformer.wte.weight"] = "model-1-of-2.safetensors";
  folder_.Write("model.safetensors.index.json", index.dump());
  File without = parts[0];
  without.Drop("transformer.wte.weight");
  folder_.Write("model-1-of-2.safetensors", without.Bytes());
  EXPECT_THAT(std::string(Read().message()), HasSubstr("index.json: tensor 'transformer.wte.weight' is missing"));
  index["weight_map"]["wte.weight"] = "model-1-of-2.safetensors";
  parts[0].tensors.push_back(parts[0].tensors[0]);
  parts[0].tensors.back().name = "wte.weight";
  folder_.Write("model-1-of-2.safetensors", parts[0].Bytes());
  folder_.Write("model.safetensors.index.json", index.dump());
  EXPECT_THAT(std::string(Read().message()), AllOf(HasSubstr("'wte.weight'"), HasSubstr("twice")));
  index["weight_map"]["transformer.wte.weight"] = "gone.safetensors";
  folder_.Write("model.safetensors.index.json", index.dump());
  EXPECT_THAT(std::string(Read().message()), HasSubstr("gone.safetensors"));
}

TEST_F(Weights, AreNotReadFromOutsideTheFolder) {
  folder_.Write("inside/nothing", "");
  folder_.Write("model.safetensors", file_.Bytes());
  for (const json& name : std::vector<json>{"../model.safetensors", "/etc/passwd", "inside/../model.safetensors", "..",
                                            ".", "", std::string("model.safetensors\0x", 19), 7, nullptr}) {
    json index;
    for (const File::Tensor& tensor : file_.tensors) index["weight_map"][tensor.name] = "model.safetensors";
    index["weight_map"]["transformer.wte.weight"] = name;
    folder_.Write("inside/model.safetensors.index.json", index.dump());
    memory_.assign(weights_.size(), 0.0f);
    const absl::Status status = ReadWeights(folder_ / "inside", network_->tensors(), memory_.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("model.safetensors.index.json"), HasSubstr("'transformer.wte.weight'")))
        << name;
  }
  for (const std::string& text : {std::string("[]"), std::string("{}"), std::string("{\"weight_map\": []}"),
                                  std::string("{\"weight_map\": {}}"), std::string("{"), std::string(100'000, '[')}) {
    folder_.Write("inside/model.safetensors.index.json", text);
    const absl::Status status = ReadWeights(folder_ / "inside", network_->tensors(), memory_.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 40);
    EXPECT_THAT(std::string(status.message()), HasSubstr("weight_map"));
  }
}

TEST_F(Weights, MayLackTheModelsPrefix) {
  for (const auto& [family, prefix] :
       {std::pair("gpt2", std::string("transformer.")), std::pair("llama", std::string("model."))}) {
    Use(TinySpec(family));
    for (File::Tensor& tensor : file_.tensors) {
      if (tensor.name.rfind(prefix, 0) == 0) tensor.name.erase(0, prefix.size());
    }
    EXPECT_OK(ReadBack());
    ExpectSame();
    // With and without is one too many.
    file_.tensors.push_back(file_.tensors[0]);
    file_.tensors.back().name = prefix + file_.tensors.back().name;
    EXPECT_THAT(Refused(), HasSubstr("twice"));
  }
}

TEST_F(Weights, OfPickleAreRefused) {
  folder_.Write("pytorch_model.bin", "PK");
  const absl::Status status = Read();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("pytorch_model.bin: pickled"), HasSubstr("safetensors")));
  EXPECT_OK(ReadBack());  // beside safetensors it is of no account
}

TEST_F(Weights, OfAnOutputProjectionThatDiffersUntieIt) {
  for (const char* family : {"gpt2", "qwen2"}) {
    const TemporaryFolder folder;
    Configuration configuration;
    configuration.spec = TinySpec(family);
    configuration.spec.set_tied_embeddings(true);
    configuration.vocab_size = kVocab;
    folder.Write("config.json", PrintConfig(configuration));
    Use(configuration.spec);
    const File::Tensor embedding = file_.tensors[0];
    file_.tensors.push_back(embedding);
    file_.tensors.back().name = "lm_head.weight";
    folder.Write("model.safetensors", file_.Bytes());
    EXPECT_TRUE(ReadConfig(folder.path())->spec.tied_embeddings());
    memory_.assign(weights_.size(), 0.0f);
    EXPECT_OK(ReadWeights(folder.path(), network_->tensors(), memory_.data()));
    ExpectSame();
    // transformers then computes logits with the head, whatever config.json says.
    file_.tensors.back().bytes[9] ^= 1;
    folder.Write("model.safetensors", file_.Bytes());
    const absl::StatusOr<Configuration> read = ReadConfig(folder.path());
    EXPECT_FALSE(read->spec.tied_embeddings());
    EXPECT_THAT(std::string(ReadWeights(folder.path(), network_->tensors(), memory_.data()).message()),
                HasSubstr("'lm_head.weight' differs from the embedding"));
    const std::string head = file_.tensors.back().bytes;
    network_ = NewNetwork(read->spec, kVocab);
    memory_.assign(static_cast<size_t>(network_->tensors().floats()), 0.0f);
    ASSERT_OK(ReadWeights(folder.path(), network_->tensors(), memory_.data()));
    EXPECT_EQ(0, std::memcmp(memory_.data() + network_->tensors()[network_->output_embedding()].offset, head.data(),
                             head.size()));
  }
}

TEST_F(Weights, AreSplitIntoFilesOfSoManyBytes) {
  Configuration configuration;
  configuration.spec = TinySpec("gpt2");
  configuration.vocab_size = kVocab;
  // The largest matrix has 24 * 72 numbers.
  for (const uint64_t most : {uint64_t{1}, uint64_t{7000}, uint64_t{20'000}}) {
    const TemporaryFolder folder;
    ASSERT_OK(WriteModel(folder.path(), configuration, network_->tensors(), weights_.data(), most));
    const json index = json::parse(folder.Read("model.safetensors.index.json"));
    EXPECT_EQ(index["metadata"]["total_size"], 4 * network_->tensors().parameters());
    EXPECT_EQ(index["weight_map"].size(), static_cast<size_t>(network_->tensors().size()));
    std::set<std::string> names;
    for (const auto& [tensor, name] : index["weight_map"].items()) names.insert(name.get<std::string>());
    size_t number = 0, tensors = 0;
    for (const std::string& name : names) {
      EXPECT_EQ(name, absl::StrFormat("model-%05d-of-%05d.safetensors", ++number, names.size()));
      const auto file = SafetensorsFile::Open(folder / name);
      ASSERT_OK(file);
      EXPECT_TRUE((*file)->header().tensors.size() == 1 || (*file)->header().data_bytes <= most) << name;
      tensors += (*file)->header().tensors.size();
      for (const SafetensorsEntry& entry : (*file)->header().tensors) EXPECT_EQ(index["weight_map"][entry.name], name);
    }
    EXPECT_EQ(tensors, static_cast<size_t>(network_->tensors().size()));
    EXPECT_EQ(names.size() == tensors, most == 1);
    EXPECT_FALSE(std::filesystem::exists(folder / "model.safetensors"));
    memory_.assign(weights_.size(), 0.0f);
    EXPECT_OK(ReadWeights(folder.path(), network_->tensors(), memory_.data()));
    ExpectSame();
  }
}

TEST_F(Weights, AreRoundedToHalfPrecisionIfWanted) {
  Configuration configuration;
  configuration.spec = TinySpec("gpt2");
  configuration.vocab_size = kVocab;
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16}) {
    configuration.dtype = dtype;
    ASSERT_OK(WriteModel(folder_.path(), configuration, network_->tensors(), weights_.data()));
    EXPECT_EQ(ReadConfig(folder_.path())->dtype, dtype);
    const auto file = SafetensorsFile::Open(folder_ / "model.safetensors");
    EXPECT_EQ((*file)->header().tensors[0].dtype, dtype == Dtype::kF16 ? "F16" : "BF16");
    ASSERT_OK(Read());
    // Half a unit in the last of 11 or 8 digits.
    const float error = dtype == Dtype::kF16 ? 0x1p-11f : 0x1p-8f;
    int rounded = 0;
    for (const TensorSpec& tensor : network_->tensors().tensors()) {
      for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
        const float value = weights_[static_cast<size_t>(i)], read = memory_[static_cast<size_t>(i)];
        ASSERT_NEAR(read, value, error * std::fabs(value) + 0x1p-24f) << tensor.name;
        rounded += read != value;
      }
    }
    EXPECT_GT(rounded, 1000);
  }
  weights_[static_cast<size_t>(network_->tensors()[3].offset) + 2] = -70000;
  configuration.dtype = Dtype::kF16;
  const absl::Status beyond = WriteModel(folder_.path(), configuration, network_->tensors(), weights_.data());
  EXPECT_EQ(beyond.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(beyond.message()),
              AllOf(HasSubstr(network_->tensors()[3].name), HasSubstr("element 2 is -70000, beyond f16's 65504")));
}

TEST_F(Weights, MayComeWithBuffers) {
  file_.tensors.push_back(file_.tensors[0]);  // the tied output projection
  file_.tensors.back().name = "lm_head.weight";
  file_.Add("transformer.h.0.attn.bias", {1, 1, 80, 80});
  file_.Add("h.1.attn.masked_bias", {1});
  EXPECT_OK(ReadBack());
  ExpectSame();
  Use(TinySpec("llama"));
  file_.Add("model.layers.0.self_attn.rotary_emb.inv_freq", {3});
  EXPECT_OK(ReadBack());
  ExpectSame();
}

TEST_F(Weights, OfAnotherModelAreRefused) {
  const File whole = file_;
  file_.Add("transformer.h.0.attn.q_norm.weight", {6});
  EXPECT_THAT(Refused(), AllOf(HasSubstr("model.safetensors"), HasSubstr("'transformer.h.0.attn.q_norm.weight'"),
                               HasSubstr("is not one of")));
  file_ = whole;
  file_.Add("transformer.h.2.ln_1.weight", {24});
  EXPECT_THAT(Refused(), HasSubstr("'transformer.h.2.ln_1.weight'"));
  file_ = whole;
  file_.Drop("transformer.h.1.mlp.c_fc.bias");
  EXPECT_THAT(Refused(), HasSubstr("'transformer.h.1.mlp.c_fc.bias' is missing"));
  file_ = whole;
  std::swap(file_.Get("transformer.h.1.mlp.c_fc.weight").shape[0],
            file_.Get("transformer.h.1.mlp.c_fc.weight").shape[1]);
  EXPECT_THAT(Refused(),
              AllOf(HasSubstr("'transformer.h.1.mlp.c_fc.weight'"), HasSubstr("[40, 24]"), HasSubstr("[24, 40]")));
  file_ = whole;
  file_.Get("transformer.ln_f.bias").shape = {24, 1};
  EXPECT_THAT(Refused(), HasSubstr("[24, 1]"));
  file_ = whole;
  file_.Get("transformer.ln_f.bias").dtype = "I32";
  EXPECT_THAT(Refused(), AllOf(HasSubstr("'transformer.ln_f.bias'"), HasSubstr("I32")));
  file_ = whole;
  Use(TinySpec("llama"));
  const File llama = file_;
  file_.Drop("lm_head.weight");
  EXPECT_THAT(Refused(), HasSubstr("'lm_head.weight' is missing"));
  file_ = whole;  // GPT-2's
  EXPECT_THAT(Refused(), HasSubstr("'transformer.wte.weight'"));
}

TEST_F(Weights, ThatAreNotFiniteAreRefused) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const File whole = file_;
    std::memcpy(file_.Get("transformer.h.0.ln_2.bias").bytes.data() + 5 * 4, &bad, 4);
    EXPECT_THAT(Refused(), AllOf(HasSubstr("'transformer.h.0.ln_2.bias'"), HasSubstr("element 5 is not finite")));
    file_ = whole;
  }
  for (const auto& [dtype, bits] : {std::pair("F16", uint16_t{0x7C00}), std::pair("BF16", uint16_t{0xFF80})}) {
    File::Tensor& tensor = file_.Get("transformer.h.0.ln_2.bias");
    tensor.dtype = dtype;
    tensor.bytes.assign(48, '\0');
    std::memcpy(tensor.bytes.data() + 2 * 23, &bits, 2);
    EXPECT_THAT(Refused(), HasSubstr("element 23 is not finite"));
  }
}

TEST_F(Weights, OfADamagedFileAreRefused) {
  const std::string bytes = file_.Bytes();
  folder_.Write("model.safetensors", bytes.substr(0, bytes.size() - 1));
  EXPECT_EQ(Read().code(), absl::StatusCode::kDataLoss);
  folder_.Write("model.safetensors", bytes + "x");
  EXPECT_EQ(Read().code(), absl::StatusCode::kDataLoss);
  folder_.Write("model.safetensors", "");
  EXPECT_EQ(Read().code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(folder_ / "model.safetensors");
  EXPECT_EQ(Read().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Read().message()), HasSubstr("model.safetensors"));
  EXPECT_EQ(ReadConfig(folder_.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadConfig(folder_.path()).status().message()), HasSubstr("config.json"));
}

}  // namespace
}  // namespace millrace::model
