#include "model/formats/gguf.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "model/families/decoder.h"
#include "model/families/encoder.h"
#include "model/formats/dtype.h"
#include "text/bpe.h"
#include "text/new_file.h"
#include "text/pre_tokenizer.h"

namespace millrace::model {
namespace {

constexpr uint64_t kAlignment = 32;

enum ValueType : uint32_t { kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };
enum TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

// Numbers and text as the file has them.
template <typename T>
void Append(T value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void AppendText(absl::string_view text, std::string* bytes) {
  Append<uint64_t>(text.size(), bytes);
  bytes->append(text.data(), text.size());
}

// The pairs of the header.
class Pairs {
 public:
  void U32(absl::string_view key, uint32_t value) { Append(value, Begin(key, kU32)); }
  void F32(absl::string_view key, float value) { Append(value, Begin(key, ValueType::kF32)); }
  void Bool(absl::string_view key, bool value) { Append<uint8_t>(value ? 1 : 0, Begin(key, kBool)); }
  void Text(absl::string_view key, absl::string_view value) { AppendText(value, Begin(key, kString)); }
  void Texts(absl::string_view key, const std::vector<std::string>& values) {
    std::string* const bytes = BeginArray(key, kString, values.size());
    for (const std::string& value : values) AppendText(value, bytes);
  }
  void I32s(absl::string_view key, const std::vector<int32_t>& values) {
    std::string* const bytes = BeginArray(key, kI32, values.size());
    for (const int32_t value : values) Append(value, bytes);
  }

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string* Begin(absl::string_view key, ValueType type) {
    ++count_;
    AppendText(key, &bytes_);
    Append<uint32_t>(type, &bytes_);
    return &bytes_;
  }
  std::string* BeginArray(absl::string_view key, ValueType type, size_t size) {
    Begin(key, kArray);
    Append<uint32_t>(type, &bytes_);
    Append<uint64_t>(size, &bytes_);
    return &bytes_;
  }

  uint64_t count_ = 0;
  std::string bytes_;
};

// ---- tensors ----

// How rows of a file's tensor come from ours.
enum class Rows {
  kAsTheyAre,
  kTransposed,  // ours is [inputs, outputs]
  kPaired,      // of each head, (2, size / 2) becomes (size / 2, 2)
  kZeros,       // the model has none
};

struct FileTensor {
  std::string name;
  int index = -1;  // in the list; -1 with kZeros
  Rows rows_from = Rows::kAsTheyAre;
  int64_t rows = 1;
  int64_t columns = 0;
  bool vector = false;
  int64_t head_size = 0;  // of kPaired
  Dtype dtype = Dtype::kF32;

  uint64_t bytes() const { return StoredBytes(dtype, rows * columns); }
};

uint32_t TypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return 0;
    case Dtype::kF16:
      return 1;
    case Dtype::kQ8_0:
      return 8;
    case Dtype::kBf16:
      return 30;
  }
  return 0;
}

// general.file_type: of most tensors.
uint32_t FileTypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return 0;
    case Dtype::kF16:
      return 1;
    case Dtype::kQ8_0:
      return 7;
    case Dtype::kBf16:
      return 32;
  }
  return 0;
}

std::vector<FileTensor> FileTensors(const Configuration& configuration, const TensorList& tensors) {
  const v1::ModelSpec& spec = configuration.spec;
  const bool gpt2 = spec.family() == "gpt2";
  const bool paired = spec.family() == "llama" || spec.family() == "mistral";
  std::vector<FileTensor> files;
  // A vector of `zeros` zeros if the model has no such tensor.
  const auto add = [&](const std::string& name, const std::string& ours, bool pair = false, int64_t zeros = 0) {
    FileTensor file;
    file.name = name;
    file.index = tensors.Find(ours);
    if (file.index < 0) {
      file.rows_from = Rows::kZeros;
      file.vector = true;
      file.columns = zeros;
      if (zeros > 0) files.push_back(std::move(file));
      return;
    }
    const TensorSpec& tensor = tensors[file.index];
    file.vector = tensor.shape.size() == 1;
    if (file.vector) {
      file.columns = tensor.size;
    } else {
      file.rows = tensor.shape[0];
      file.columns = tensor.shape[1];
      if (tensor.rows_are_inputs) {
        std::swap(file.rows, file.columns);
        file.rows_from = Rows::kTransposed;
      } else if (pair) {
        file.rows_from = Rows::kPaired;
        file.head_size = spec.hidden_size() / spec.heads();
      }
      if (name != "position_embd.weight" && (configuration.dtype != Dtype::kQ8_0 || file.columns % kQ8_0Block == 0)) {
        file.dtype = configuration.dtype;
      }
    }
    files.push_back(std::move(file));
  };
  // GPT-2's products and norms have biases, whether ours have or not.
  const auto add_biased = [&](const std::string& name, const std::string& ours, int64_t outputs) {
    add(name + ".weight", ours + ".weight");
    add(name + ".bias", ours + ".bias", false, gpt2 ? outputs : 0);
  };
  const int64_t hidden = spec.hidden_size();
  if (gpt2) {
    add("token_embd.weight", "transformer.wte.weight");
    add("position_embd.weight", "transformer.wpe.weight");
  } else {
    add("token_embd.weight", "model.embed_tokens.weight");
  }
  for (uint32_t i = 0; i < spec.layers(); ++i) {
    const std::string block = absl::StrCat("blk.", i, ".");
    if (gpt2) {
      const std::string ours = absl::StrCat("transformer.h.", i, ".");
      add_biased(block + "attn_norm", ours + "ln_1", hidden);
      add_biased(block + "attn_qkv", ours + "attn.c_attn", 3 * hidden);
      add_biased(block + "attn_output", ours + "attn.c_proj", hidden);
      add_biased(block + "ffn_norm", ours + "ln_2", hidden);
      add_biased(block + "ffn_up", ours + "mlp.c_fc", spec.intermediate_size());
      add_biased(block + "ffn_down", ours + "mlp.c_proj", hidden);
    } else {
      const std::string ours = absl::StrCat("model.layers.", i, ".");
      add(block + "attn_norm.weight", ours + "input_layernorm.weight");
      add(block + "attn_q.weight", ours + "self_attn.q_proj.weight", paired);
      add(block + "attn_q.bias", ours + "self_attn.q_proj.bias");
      add(block + "attn_k.weight", ours + "self_attn.k_proj.weight", paired);
      add(block + "attn_k.bias", ours + "self_attn.k_proj.bias");
      add(block + "attn_v.weight", ours + "self_attn.v_proj.weight");
      add(block + "attn_v.bias", ours + "self_attn.v_proj.bias");
      add(block + "attn_output.weight", ours + "self_attn.o_proj.weight");
      add(block + "ffn_norm.weight", ours + "post_attention_layernorm.weight");
      add(block + "ffn_gate.weight", ours + "mlp.gate_proj.weight");
      add(block + "ffn_up.weight", ours + "mlp.up_proj.weight");
      add(block + "ffn_down.weight", ours + "mlp.down_proj.weight");
    }
  }
  add_biased("output_norm", gpt2 ? "transformer.ln_f" : "model.norm", hidden);
  // Absent: the embedding.
  add("output.weight", "lm_head.weight");
  return files;
}

// Row `row` of the file's tensor, [columns].
void TakeRow(const FileTensor& file, const float* ours, int64_t row, std::vector<float>* values) {
  switch (file.rows_from) {
    case Rows::kZeros:
      std::fill(values->begin(), values->end(), 0.0f);
      return;
    case Rows::kTransposed:
      for (int64_t i = 0; i < file.columns; ++i) (*values)[static_cast<size_t>(i)] = ours[i * file.rows + row];
      return;
    case Rows::kPaired: {
      const int64_t head = row / file.head_size, within = row % file.head_size;
      row = head * file.head_size + within % 2 * (file.head_size / 2) + within / 2;
      break;
    }
    case Rows::kAsTheyAre:
      break;
  }
  std::copy_n(ours + row * file.columns, file.columns, values->begin());
}

// ---- the tokenizer ----

// A character as rwkv's vocabulary has it.
std::string Escaped(absl::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    if (c == '\\') {
      text += "\\\\";
    } else if (c == '\t') {
      text += "\\t";
    } else if (c == '\n') {
      text += "\\n";
    } else if (c == '\r') {
      text += "\\r";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      absl::StrAppendFormat(&text, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      text.push_back(c);
    }
  }
  return text;
}

// rwkv's loop looks for the longest token that the text goes on with, and returns to the text's beginning where there
// is none but one begins so. Tokens of one byte each leave no such place.
absl::Status CheckCharacters(const text::Tokenizer& tokenizer) {
  std::vector<bool> known(128, false);
  for (uint32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsSpecial(id)) continue;
    const std::string bytes = tokenizer.TokenBytes(id);
    if (bytes.size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tokenizer has the character ", bytes,
                       ", one token beyond ASCII, at which llama.cpp's tokenizer of single ",
                       "characters might not end; train with a byte-level BPE, or with ASCII only, for GGUF"));
    }
    known[static_cast<unsigned char>(bytes[0])] = true;
  }
  for (const text::AddedToken& token : tokenizer.added_tokens()) {
    const auto first = static_cast<unsigned char>(token.content[0]);
    if (first >= known.size() || !known[first]) {
      return absl::InvalidArgumentError(absl::StrCat("the special token ", token.content,
                                                     " begins with a character that the tokenizer lacks, at which ",
                                                     "llama.cpp's tokenizer of single characters would not end"));
    }
  }
  return absl::OkStatus();
}

absl::Status AddTokenizer(const Configuration& configuration, const text::Tokenizer& tokenizer, Pairs* pairs) {
  const auto* const bpe = dynamic_cast<const text::BpeTokenizer*>(&tokenizer);
  const std::optional<uint32_t> end =
      tokenizer.end_of_text().has_value() ? tokenizer.end_of_text() : configuration.end_of_text;
  if (bpe != nullptr && !end.has_value()) {
    return absl::InvalidArgumentError(
        "the tokenizer has no <|endoftext|> and config.json no eos_token_id: llama.cpp would take token 11 for it");
  }
  if (bpe == nullptr) MILLRACE_RETURN_IF_ERROR(CheckCharacters(tokenizer));
  std::map<uint32_t, const text::AddedToken*> added;
  for (const text::AddedToken& token : tokenizer.added_tokens()) added[token.id] = &token;
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::map<std::string, uint32_t> seen;
  for (uint32_t id = 0; id < configuration.vocab_size; ++id) {
    const std::string bytes = tokenizer.TokenBytes(id);
    if (const auto token = added.find(id); token != added.end()) {
      tokens.push_back(bytes);
      types.push_back(token->second->special ? kControl : kUserDefined);
    } else if (bytes.empty()) {
      // The embedding may have more rows than there are tokens.
      tokens.push_back(absl::StrCat("[PAD", id, "]"));
      types.push_back(kUnused);
    } else {
      tokens.push_back(bpe != nullptr ? text::ByteLevel(bytes) : Escaped(bytes));
      types.push_back(kNormal);
    }
    if (const auto [other, fresh] = seen.emplace(tokens.back(), id); !fresh) {
      return absl::InvalidArgumentError(absl::StrCat("tokens ", other->second, " and ", id, " are both written ",
                                                     tokens.back(), ", which llama.cpp refuses"));
    }
  }
  pairs->Text("tokenizer.ggml.model", bpe != nullptr ? "gpt2" : "rwkv");
  if (bpe != nullptr) pairs->Text("tokenizer.ggml.pre", "gpt-2");
  pairs->Texts("tokenizer.ggml.tokens", tokens);
  pairs->I32s("tokenizer.ggml.token_type", types);
  if (bpe != nullptr) {
    const text::BpeVocabulary& vocabulary = bpe->vocabulary();
    std::vector<std::string> merges;
    for (const auto& [left, right] : vocabulary.merges) {
      merges.push_back(
          absl::StrCat(text::ByteLevel(vocabulary.tokens[left]), " ", text::ByteLevel(vocabulary.tokens[right])));
    }
    pairs->Texts("tokenizer.ggml.merges", merges);
  }
  if (end.has_value()) {
    pairs->U32("tokenizer.ggml.bos_token_id", *end);
    pairs->U32("tokenizer.ggml.eos_token_id", *end);
  }
  if (configuration.padding.has_value()) pairs->U32("tokenizer.ggml.padding_token_id", *configuration.padding);
  // As the tokenizer does, which adds no tokens.
  pairs->Bool("tokenizer.ggml.add_bos_token", false);
  pairs->Bool("tokenizer.ggml.add_eos_token", false);
  return absl::OkStatus();
}

Pairs Architecture(const Configuration& configuration, const GgufAbout& about) {
  const v1::ModelSpec& spec = configuration.spec;
  const bool gpt2 = spec.family() == "gpt2";
  const std::string name = spec.family() == "mistral" ? "llama" : spec.family();
  const uint32_t context = spec.has_sliding_window() ? std::min(spec.context(), spec.sliding_window()) : spec.context();
  Pairs pairs;
  pairs.Text("general.architecture", name);
  pairs.Text("general.type", "model");
  pairs.Text("general.name", about.name);
  pairs.U32("general.alignment", kAlignment);
  pairs.U32("general.file_type", FileTypeOf(configuration.dtype));
  if (configuration.dtype == Dtype::kQ8_0) pairs.U32("general.quantization_version", 2);
  pairs.U32(name + ".vocab_size", configuration.vocab_size);
  pairs.U32(name + ".context_length", context);
  pairs.U32(name + ".embedding_length", spec.hidden_size());
  pairs.U32(name + ".block_count", spec.layers());
  pairs.U32(name + ".feed_forward_length", spec.intermediate_size());
  pairs.U32(name + ".attention.head_count", spec.heads());
  pairs.U32(name + ".attention.head_count_kv", spec.kv_heads());
  const auto epsilon = static_cast<float>(spec.norm_epsilon());
  if (gpt2) {
    pairs.F32(name + ".attention.layer_norm_epsilon", epsilon);
  } else {
    pairs.F32(name + ".attention.layer_norm_rms_epsilon", epsilon);
    pairs.U32(name + ".rope.dimension_count", spec.hidden_size() / spec.heads());
    pairs.F32(name + ".rope.freq_base", static_cast<float>(spec.rope_theta()));
  }
  return pairs;
}

std::string Padding(uint64_t bytes) { return std::string((kAlignment - bytes % kAlignment) % kAlignment, '\0'); }

}  // namespace

absl::Status WriteGguf(const std::string& path, const Configuration& configuration, const TensorList& tensors,
                       const float* memory, const text::Tokenizer& tokenizer, const GgufAbout& about) {
  if (configuration.head != Head::kLanguage) {
    return absl::InvalidArgumentError("a model with a scalar head (a reward model) has no place in GGUF");
  }
  if (IsEncoder(configuration.spec.family())) {
    return absl::InvalidArgumentError("encoders are not written as GGUF, which is for text that is continued; hf is");
  }
  if (!IsDecoder(configuration.spec.family())) {
    return absl::InvalidArgumentError(
        absl::StrCat("llama.cpp has no architecture for the family ", configuration.spec.family()));
  }
  Pairs pairs = Architecture(configuration, about);
  MILLRACE_RETURN_IF_ERROR(AddTokenizer(configuration, tokenizer, &pairs));
  if (!about.chat_template.empty()) pairs.Text("tokenizer.chat_template", about.chat_template);
  const std::vector<FileTensor> files = FileTensors(configuration, tensors);
  std::string start = "GGUF";
  Append<uint32_t>(3, &start);
  Append<uint64_t>(files.size(), &start);
  Append<uint64_t>(pairs.count(), &start);
  start += pairs.bytes();
  uint64_t offset = 0;
  for (const FileTensor& file : files) {
    AppendText(file.name, &start);
    Append<uint32_t>(file.vector ? 1 : 2, &start);
    Append<uint64_t>(static_cast<uint64_t>(file.columns), &start);
    if (!file.vector) Append<uint64_t>(static_cast<uint64_t>(file.rows), &start);
    Append<uint32_t>(TypeOf(file.dtype), &start);
    Append<uint64_t>(offset, &start);
    offset += file.bytes() + Padding(file.bytes()).size();
  }
  start += Padding(start.size());

  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::NewFile> out, text::NewFile::Create(path));
  MILLRACE_RETURN_IF_ERROR(out->Append(start));
  std::vector<float> row;
  std::string bytes;
  for (const FileTensor& file : files) {
    row.resize(static_cast<size_t>(file.columns));
    const float* const ours = file.index < 0 ? nullptr : memory + tensors[file.index].offset;
    for (int64_t i = 0; i < file.rows; ++i) {
      TakeRow(file, ours, i, &row);
      bytes.clear();
      if (const absl::Status stored = AppendStored(file.dtype, row, &bytes); !stored.ok()) {
        return Annotate(stored, absl::StrCat("tensor '", tensors[file.index].name, "', row ", i, " of ", file.name));
      }
      MILLRACE_RETURN_IF_ERROR(out->Append(bytes));
    }
    MILLRACE_RETURN_IF_ERROR(out->Append(Padding(file.bytes())));
  }
  return out->Commit();
}

}  // namespace millrace::model
