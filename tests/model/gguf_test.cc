// GGUF files, read back by testing/gguf_reader.h: what llama.cpp asks for, and where each number lies.
#include "model/formats/gguf.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/formats/dtype.h"
#include "model/tiny_models.h"
#include "testing/gguf_reader.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::model {
namespace {

using ::testing::ElementsAre;
using testing::GgufFile;
using testing::GgufReader;
using testing::GgufTensor;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// <|endoftext|>, the bytes, " t" or the like and one more, and a token for turns.
std::unique_ptr<text::Tokenizer> Bpe() {
  text::BpeTraining training;
  training.vocab_size = 259;
  training.special_tokens = {"<|turn|>"};
  return *text::TrainBpe(training, [](const auto& each) { return each("then then then then"); });
}

std::unique_ptr<text::Tokenizer> Characters(const std::string& characters,
                                            const std::vector<std::string>& special = {}) {
  return *text::TrainCharacters([&](const auto& each) { return each(characters); }, special);
}

struct Made {
  Configuration configuration;
  std::unique_ptr<Network> network;
  std::vector<float> weights;

  explicit Made(const v1::ModelSpec& spec, uint32_t vocab_size = 262) {
    configuration.spec = spec;
    configuration.vocab_size = vocab_size;
    network = NewNetwork(spec, vocab_size);
    weights = RandomWeights(network->tensors(), 1);
  }

  absl::Status Write(const std::string& path, const text::Tokenizer& tokenizer, const GgufAbout& about = {}) const {
    return WriteGguf(path, configuration, network->tensors(), weights.data(), tokenizer, about);
  }
  // Element [row, column] of one of ours.
  float At(const std::string& name, int64_t row, int64_t column = 0) const {
    const TensorSpec& tensor = network->tensors()[network->tensors().Find(name)];
    return weights[static_cast<size_t>(tensor.offset + row * (tensor.shape.size() == 1 ? 1 : tensor.shape[1]) +
                                       column)];
  }
};

GgufFile Read(const TemporaryFolder& folder, const std::string& name = "m.gguf") {
  const std::string bytes = folder.Read(name);
  return GgufReader(bytes).Read();
}

float Element(const GgufTensor& tensor, int64_t row, int64_t column) {
  return tensor.values.at(static_cast<size_t>(row) * tensor.extents.at(0) + static_cast<size_t>(column));
}

TEST(Gguf, SaysWhatLlamaCppAsksFor) {
  const TemporaryFolder folder;
  for (const std::string family : {"gpt2", "llama", "mistral", "qwen2"}) {
    Made made(TinySpec(family));
    made.configuration.padding = 5;
    ASSERT_OK(made.Write(folder / "m.gguf", *Bpe(), {"tiny", "{{ messages }}"}));
    const GgufFile file = Read(folder);
    const std::string name = family == "mistral" ? "llama" : family;
    const auto number = [&](const std::string& key) {
      const auto found = file.pairs.find(key);
      EXPECT_NE(found, file.pairs.end()) << key;
      return found == file.pairs.end() ? NAN : found->second.number();
    };
    EXPECT_EQ(file.pairs.at("general.architecture").text(), name);
    EXPECT_EQ(file.pairs.at("general.name").text(), "tiny");
    EXPECT_EQ(number("general.file_type"), 0);
    EXPECT_EQ(number(name + ".vocab_size"), 262);
    // A window shorter than the context is all that llama.cpp's llama can be told.
    EXPECT_EQ(number(name + ".context_length"), family == "mistral" ? 21 : 80);
    EXPECT_EQ(number(name + ".embedding_length"), 24);
    EXPECT_EQ(number(name + ".block_count"), 2);
    EXPECT_EQ(number(name + ".feed_forward_length"), 40);
    EXPECT_EQ(number(name + ".attention.head_count"), 4);
    EXPECT_EQ(number(name + ".attention.head_count_kv"), family == "gpt2" ? 4 : 2);
    if (family == "gpt2") {
      EXPECT_NEAR(number("gpt2.attention.layer_norm_epsilon"), 1e-5, 1e-12);
    } else {
      EXPECT_NEAR(number(name + ".attention.layer_norm_rms_epsilon"), 1e-5, 1e-12);
      EXPECT_EQ(number(name + ".rope.dimension_count"), 6);
      EXPECT_EQ(number(name + ".rope.freq_base"), 10000);
    }
    EXPECT_EQ(file.pairs.at("tokenizer.ggml.model").text(), "gpt2");
    EXPECT_EQ(file.pairs.at("tokenizer.ggml.pre").text(), "gpt-2");
    EXPECT_EQ(file.pairs.at("tokenizer.chat_template").text(), "{{ messages }}");
    EXPECT_EQ(number("tokenizer.ggml.eos_token_id"), 0);
    EXPECT_EQ(number("tokenizer.ggml.bos_token_id"), 0);
    EXPECT_EQ(number("tokenizer.ggml.padding_token_id"), 5);
    EXPECT_EQ(number("tokenizer.ggml.add_bos_token"), 0);
    const std::vector<std::string>& tokens = file.pairs.at("tokenizer.ggml.tokens").texts;
    const std::vector<double>& types = file.pairs.at("tokenizer.ggml.token_type").numbers;
    ASSERT_EQ(tokens.size(), 262u);
    ASSERT_EQ(types.size(), 262u);
    EXPECT_EQ(tokens[0], "<|endoftext|>");
    EXPECT_EQ(types[0], 3);
    EXPECT_EQ(tokens[1], "!");
    EXPECT_EQ(types[1], 1);
    EXPECT_EQ(tokens[189], "\u0100");  // the byte 0 as byte-level characters have it
    EXPECT_EQ(tokens[259], "<|turn|>");
    EXPECT_EQ(types[259], 3);
    EXPECT_EQ(tokens[261], "[PAD261]");  // a row of the embedding without a token
    EXPECT_EQ(types[261], 5);
    EXPECT_EQ(file.pairs.at("tokenizer.ggml.merges").texts.size(), 2u);
    EXPECT_THAT(file.pairs.at("tokenizer.ggml.merges").texts[0], ::testing::MatchesRegex("[a-z] [a-z]"));
  }
}

TEST(Gguf, HoldsGpt2WithItsMatricesTurned) {
  const TemporaryFolder folder;
  const Made made(TinySpec("gpt2"));
  ASSERT_OK(made.Write(folder / "m.gguf", *Bpe()));
  const GgufFile file = Read(folder);
  EXPECT_EQ(file.tensors.size(), 2 + 2 * 12 + 2u);
  const GgufTensor& qkv = file.tensors.at("blk.1.attn_qkv.weight");
  EXPECT_THAT(qkv.extents, ElementsAre(24, 72));
  for (int64_t row = 0; row < 72; ++row) {
    for (int64_t column = 0; column < 24; ++column) {
      ASSERT_EQ(Element(qkv, row, column), made.At("transformer.h.1.attn.c_attn.weight", column, row));
    }
  }
  const GgufTensor& embedding = file.tensors.at("token_embd.weight");
  EXPECT_THAT(embedding.extents, ElementsAre(24, 262));
  EXPECT_EQ(Element(embedding, 7, 3), made.At("transformer.wte.weight", 7, 3));
  EXPECT_THAT(file.tensors.at("position_embd.weight").extents, ElementsAre(24, 80));
  EXPECT_THAT(file.tensors.at("blk.0.ffn_down.weight").extents, ElementsAre(40, 24));
  EXPECT_EQ(file.tensors.at("blk.0.ffn_up.bias").values[5], made.At("transformer.h.0.mlp.c_fc.bias", 5));
  EXPECT_EQ(file.tensors.at("output_norm.bias").values[5], made.At("transformer.ln_f.bias", 5));
}

TEST(Gguf, FillsBiasesThatAModelLacksWithZeros) {
  const TemporaryFolder folder;
  v1::ModelSpec spec = TinySpec("gpt2");
  spec.set_bias(false);
  spec.set_tied_embeddings(false);
  const Made made(spec);
  ASSERT_OK(made.Write(folder / "m.gguf", *Bpe()));
  const GgufFile file = Read(folder);
  EXPECT_EQ(file.tensors.size(), 2 + 2 * 12 + 2 + 1u);
  EXPECT_EQ(file.tensors.at("blk.0.attn_qkv.bias").values, std::vector<float>(72, 0.0f));
  EXPECT_EQ(file.tensors.at("output_norm.bias").values, std::vector<float>(24, 0.0f));
  EXPECT_EQ(Element(file.tensors.at("output.weight"), 9, 2), made.At("lm_head.weight", 9, 2));
}

TEST(Gguf, HoldsRotaryPairsAsEachArchitectureHasThem) {
  const TemporaryFolder folder;
  for (const std::string family : {"llama", "mistral", "qwen2"}) {
    const Made made(TinySpec(family));
    ASSERT_OK(made.Write(folder / "m.gguf", *Bpe()));
    const GgufFile file = Read(folder);
    EXPECT_EQ(file.tensors.size(), 1 + 2 * (family == "qwen2" ? 12 : 9) + 2u);
    for (const auto& [name, ours, heads] :
         {std::tuple("attn_q", "q_proj", 4), std::tuple("attn_k", "k_proj", 2), std::tuple("attn_v", "v_proj", 2)}) {
      const GgufTensor& tensor = file.tensors.at(absl::StrCat("blk.1.", name, ".weight"));
      EXPECT_THAT(tensor.extents, ElementsAre(24, static_cast<uint64_t>(heads * 6)));
      const bool paired = family != "qwen2" && name != std::string("attn_v");
      for (int64_t head = 0; head < heads; ++head) {
        // Numbers i and i + 3 of a head are turned together: side by side for llama.
        const std::vector<int64_t> from =
            paired ? std::vector<int64_t>{0, 3, 1, 4, 2, 5} : std::vector<int64_t>{0, 1, 2, 3, 4, 5};
        for (int64_t i = 0; i < 6; ++i) {
          for (const int64_t column : {0, 23}) {
            EXPECT_EQ(Element(tensor, head * 6 + i, column),
                      made.At(absl::StrCat("model.layers.1.self_attn.", ours, ".weight"),
                              head * 6 + from[static_cast<size_t>(i)], column))
                << family << " " << name << " " << head << " " << i;
          }
        }
      }
      if (family == "qwen2") {
        EXPECT_EQ(file.tensors.at(absl::StrCat("blk.1.", name, ".bias")).values[4],
                  made.At(absl::StrCat("model.layers.1.self_attn.", ours, ".bias"), 4));
      }
    }
    EXPECT_EQ(Element(file.tensors.at("blk.0.ffn_gate.weight"), 39, 1),
              made.At("model.layers.0.mlp.gate_proj.weight", 39, 1));
    EXPECT_EQ(Element(file.tensors.at("output.weight"), 261, 23), made.At("lm_head.weight", 261, 23));
  }
}

TEST(Gguf, RoundsMatricesAsWanted) {
  const TemporaryFolder folder;
  v1::ModelSpec spec = TinySpec("llama");
  spec.set_hidden_size(64);
  spec.set_intermediate_size(40);  // no whole number of blocks
  Made made(spec);
  struct Kind {
    Dtype dtype;
    uint32_t type, file_type;
    float error;  // of the largest in a block
  };
  for (const Kind& kind : {Kind{Dtype::kF32, 0, 0, 0}, Kind{Dtype::kF16, 1, 1, 0x1p-11f},
                           Kind{Dtype::kBf16, 30, 32, 0x1p-8f}, Kind{Dtype::kQ8_0, 8, 7, 0.5f / 127 + 0x1p-11f}}) {
    made.configuration.dtype = kind.dtype;
    ASSERT_OK(made.Write(folder / "m.gguf", *Bpe()));
    const GgufFile file = Read(folder);
    EXPECT_EQ(file.pairs.at("general.file_type").number(), kind.file_type);
    EXPECT_EQ(file.pairs.contains("general.quantization_version"), kind.dtype == Dtype::kQ8_0);
    EXPECT_EQ(file.tensors.at("blk.0.attn_norm.weight").type, 0u);
    EXPECT_EQ(file.tensors.at("blk.0.ffn_down.weight").type, kind.dtype == Dtype::kQ8_0 ? 0u : kind.type);
    const GgufTensor& tensor = file.tensors.at("blk.0.ffn_up.weight");
    EXPECT_EQ(tensor.type, kind.type);
    for (int64_t row = 0; row < 40; ++row) {
      for (int64_t column = 0; column < 64; ++column) {
        ASSERT_NEAR(Element(tensor, row, column), made.At("model.layers.0.mlp.up_proj.weight", row, column),
                    0.5f * kind.error)
            << row << " " << column;
      }
    }
  }
}

TEST(Gguf, QuantizesAsGgmlDoes) {
  std::vector<float> values(64, 0.0f);
  values[0] = 127;
  values[1] = -127;
  values[2] = 2.5f;  // halves go away from zero
  values[3] = -2.5f;
  values[4] = 2.4f;
  std::string bytes;
  ASSERT_OK(AppendStored(Dtype::kQ8_0, values, &bytes));
  ASSERT_EQ(bytes.size(), 68u);
  EXPECT_EQ(bytes.size(), StoredBytes(Dtype::kQ8_0, 64));
  EXPECT_EQ(bytes.substr(0, 2), std::string("\x00\x3C", 2));  // 1 in f16
  EXPECT_EQ(bytes.substr(2, 6), std::string("\x7F\x81\x03\xFD\x02\x00", 6));
  EXPECT_EQ(bytes.substr(34), std::string(34, '\0'));  // zeros have the scale 0
  values[40] = 1e8f;
  EXPECT_THAT(std::string(AppendStored(Dtype::kQ8_0, values, &bytes).message()), HasSubstr("beyond f16's 65504"));
}

TEST(Gguf, TellsCharactersAsTokensOfRwkv) {
  const TemporaryFolder folder;
  const Made made(TinySpec("gpt2"), 11);
  ASSERT_OK(made.Write(folder / "m.gguf", *Characters("ab\n\t\\\x01<", {"<|end|>"})));
  const GgufFile file = Read(folder);
  EXPECT_EQ(file.pairs.at("tokenizer.ggml.model").text(), "rwkv");
  EXPECT_FALSE(file.pairs.contains("tokenizer.ggml.merges"));
  EXPECT_FALSE(file.pairs.contains("tokenizer.ggml.eos_token_id"));
  EXPECT_THAT(file.pairs.at("tokenizer.ggml.tokens").texts,
              ElementsAre("\\x01", "\\t", "\\n", "<", "\\\\", "a", "b", "<|end|>", "[PAD8]", "[PAD9]", "[PAD10]"));
  EXPECT_THAT(file.pairs.at("tokenizer.ggml.token_type").numbers, ElementsAre(1, 1, 1, 1, 1, 1, 1, 3, 5, 5, 5));
}

TEST(Gguf, RefusesWhatLlamaCppWouldTakeForAnotherThing) {
  const TemporaryFolder folder;
  const auto refusal = [&](const Made& made, const text::Tokenizer& tokenizer) {
    const absl::Status status = made.Write(folder / "refused.gguf", tokenizer);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_FALSE(std::filesystem::exists(folder / "refused.gguf"));
    return std::string(status.message());
  };
  const Made made(TinySpec("gpt2"));
  EXPECT_THAT(refusal(made, *Characters("aé")), HasSubstr("é, one token beyond ASCII"));
  EXPECT_THAT(refusal(made, *Characters("ab", {"<|end|>"})), HasSubstr("<|end|> begins with a character"));
  // A BPE that nothing ends.
  std::string json = Bpe()->ToJson();
  for (size_t at = 0; (at = json.find("<|endoftext|>", at)) != std::string::npos;) json.replace(at, 13, "<|other|>");
  const auto endless = *text::ParseTokenizer(json, "x");
  EXPECT_THAT(refusal(made, *endless), HasSubstr("no <|endoftext|> and config.json no eos_token_id"));
  Made ended(TinySpec("gpt2"));
  ended.configuration.end_of_text = 259;
  EXPECT_OK(ended.Write(folder / "m.gguf", *endless));
  EXPECT_EQ(Read(folder).pairs.at("tokenizer.ggml.eos_token_id").number(), 259);
  // Two tokens that are written alike.
  json = Bpe()->ToJson();
  for (size_t at = 0; (at = json.find("<|turn|>", at)) != std::string::npos;) json.replace(at, 8, "[PAD260]");
  EXPECT_THAT(refusal(made, **text::ParseTokenizer(json, "x")), HasSubstr("are both written [PAD260]"));
  Made far(TinySpec("gpt2"));
  far.configuration.dtype = Dtype::kF16;
  const TensorSpec& tensor = far.network->tensors()[far.network->tensors().Find("transformer.h.0.attn.c_attn.weight")];
  far.weights[static_cast<size_t>(tensor.offset) + 72 * 3 + 8] = 1e6f;
  EXPECT_THAT(refusal(far, *Bpe()), HasSubstr("'transformer.h.0.attn.c_attn.weight', row 8 of blk.0.attn_qkv.weight"));
  Made scalar(TinySpec("gpt2"));
  scalar.configuration.head = Head::kScalar;
  EXPECT_THAT(refusal(scalar, *Bpe()), HasSubstr("scalar head"));
  EXPECT_THAT(refusal(Made(TinySpec("lstm")), *Bpe()), HasSubstr("no architecture for the family lstm"));
}

}  // namespace
}  // namespace millrace::model
