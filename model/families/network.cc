#include "model/families/network.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/families/causal_stack.h"
#include "model/families/decoder.h"
#include "model/families/encoder.h"

namespace millrace::model {
namespace {

absl::Status CheckSizes(const v1::ModelSpec& spec, uint32_t vocab_size) {
  const auto wrong = [](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("model: ", what)); };
  if (vocab_size == 0) return wrong("the vocabulary is empty");
  if (spec.layers() == 0 || spec.hidden_size() == 0 || spec.context() == 0) {
    return wrong("layers, hidden_size and context must be at least 1");
  }
  if (spec.layers() > 512 || spec.hidden_size() > 65'536 || spec.context() > 131'072 || vocab_size > 16'777'216) {
    return wrong("a size is beyond what is supported");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Network>> CreateNetwork(const v1::ModelSpec& spec, uint32_t vocab_size, Head head) {
  MILLRACE_RETURN_IF_ERROR(CheckSizes(spec, vocab_size));
  if (IsDecoder(spec.family())) return Decoder::Create(spec, vocab_size, head);
  if (IsCausalStack(spec.family())) return CausalStack::Create(spec, vocab_size, head);
  if (IsEncoder(spec.family())) return Encoder::Create(spec, vocab_size, head);
  return absl::InvalidArgumentError(absl::StrCat("model: there is no family '", spec.family(),
                                                 "'; gpt2, llama, mistral, qwen2, bert, lstm and cnn are known"));
}

Network::Network(const v1::ModelSpec& spec, uint32_t vocab_size)
    : spec_(spec),
      vocab_size_(vocab_size),
      hidden_size_(spec.hidden_size()),
      precision_(spec.precision() == "bf16" ? kernels::Precision::kBf16 : kernels::Precision::kF32) {}

int Network::AddTable(const std::string& name, int64_t rows, uint32_t group, double std) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = {rows, hidden_size_};
  spec.role = Role::kEmbedding;
  spec.group = group;
  spec.start = Start::kNormal;
  spec.start_size = static_cast<float>(std);
  return tensors_.Add(std::move(spec));
}

void Network::AddHead(Head head) {
  if (head == Head::kScalar) {
    // Stiennon et al. 2020, "Learning to summarize from human feedback".
    score_ = AddTable("score.weight", 1, last_group(), 1.0 / std::sqrt(static_cast<double>(hidden_size_ + 1)));
  } else if (spec_.tied_embeddings()) {
    output_embedding_ = input_embedding_;
  } else {
    output_embedding_ = AddTable("lm_head.weight", vocab_size_, last_group(), spec_.init_std());
  }
}

absl::Status Network::CheckExtends() const {
  if (extends()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a model of the family ", spec_.family(),
                   " is an encoder: it fills in hidden tokens, but does not continue text"));
}

int Network::LowestTrained(const NetworkWeights& weights, Trainable trainable) const {
  int lowest = 0;
  while (trainable != nullptr && lowest < tensors_.size() && !(*trainable)[static_cast<size_t>(lowest)]) ++lowest;
  return lowest;
}

bool Network::NeedsOutputGradient(const NetworkWeights& weights, Trainable trainable) const {
  const int head = score_ >= 0 ? score_ : masked_head_.has_value() ? masked_head_->pooler.weight : output_embedding_;
  return LowestTrained(weights, trainable) < (head == input_embedding_ ? tensors_.size() : head);
}

absl::Status Network::CheckRoom(const NetworkWeights& weights, const TokenMatrix& tokens, int64_t capacity,
                                int64_t columns) const {
  const int64_t virtual_tokens = weights.virtual_tokens();
  if (virtual_tokens + tokens.columns <= spec_.context() && tokens.columns <= columns && tokens.tokens() <= capacity &&
      tokens.tokens() > 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(tokens.rows, " sequences of ", tokens.columns, " tokens",
                   virtual_tokens > 0 ? absl::StrCat(" behind ", virtual_tokens, " virtual ones") : "",
                   " do not fit a model with context ", spec_.context(), " and memory for ", capacity, " tokens"));
}

absl::Status Network::CheckIds(const TokenMatrix& tokens) const {
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

absl::StatusOr<std::vector<Sequence>> SequencesOf(const TokenMatrix& tokens) {
  std::vector<Sequence> sequences;
  if (tokens.starts == nullptr) return sequences;
  for (int64_t row = 0; row < tokens.rows; ++row) {
    uint32_t start = 0;
    for (int64_t column = 0; column < tokens.columns; ++column) {
      const uint32_t given = tokens.starts[row * tokens.row_stride + column];
      const bool begins = static_cast<int64_t>(given) == column;
      if (!begins && (column == 0 || given != start)) {
        return absl::InvalidArgumentError(absl::StrCat("row ", row, ", column ", column,
                                                       ": a sequence cannot begin at column ", given,
                                                       " there; that of the token before or ", column, " can"));
      }
      start = given;
      if (begins) sequences.push_back({row * tokens.columns + column, 0});
      ++sequences.back().length;
    }
  }
  return sequences;
}

absl::Status CheckStack(absl::Span<const Adapter* const> adapters) {
  const Adapter* with_tokens = nullptr;
  for (size_t i = 0; i < adapters.size(); ++i) {
    const Adapter& adapter = *adapters[i];
    if (adapter.virtual_tokens() > 0 || adapter.prompt_tokens() > 0) {
      if (with_tokens != nullptr) {
        return absl::InvalidArgumentError(absl::StrCat("adapters of ", with_tokens->spec().type(), " and ",
                                                       adapter.spec().type(),
                                                       " cannot be used together: one of them can have tokens"));
      }
      with_tokens = &adapter;
    }
    if (adapter.spec().dora() && i > 0) {
      return absl::InvalidArgumentError("an adapter with dora cannot be used on top of another: it must be the first");
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
