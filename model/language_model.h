// Uses a trained model: scores texts, continues them, embeds them. What `millrace score`, `generate`, `eval`, `embed`
// and `nearest` do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/compute.h"
#include "model/arena.h"
#include "model/families/network.h"
#include "model/formats/config_json.h"
#include "model/formats/peft.h"
#include "model/sampling.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/hidden_tokens.h"
#include "text/tokenizer.h"

namespace millrace::model {

// Which weights a model is opened with: those that its precision computes with (bf16: rounded to bfloat16, as workers
// get them), or those of its folder, to be written again.
enum class Weights { kComputed, kStored };

// A model folder in memory. Used by one thread at a time.
class LanguageModel {
 public:
  // Reads config.json, tokenizer.json and the weights of a folder in Hugging Face's layout, which a checkpoint is too.
  // If it holds an adapter as well, or nothing but one that names its base model, that is used. `compute` outlives the
  // model. Errors name file and field or tensor. Sums of checkpoints are not compared here.
  static absl::StatusOr<std::unique_ptr<LanguageModel>> Open(const std::string& directory,
                                                             const kernels::Compute* compute,
                                                             Weights weights = Weights::kComputed);
  ~LanguageModel();

  const Network& network() const { return *network_; }
  // As the folder has it.
  const Configuration& configuration() const { return configuration_; }
  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  // The network's own weights, laid out as its tensors, and the adapters that are used. Views.
  NetworkWeights weights() const { return {weights_, used_}; }
  // Tokens that a prediction can look back on; an encoder's see as many, [CLS] and [SEP] not among them.
  int64_t context() const {
    return network_->spec().context() - weights().virtual_tokens() - (encoder_tokens_.has_value() ? 2 : 0);
  }
  const kernels::Compute& compute() const { return *compute_; }
  // Those of an encoder's sequences; null for others.
  const text::EncoderTokens* encoder_tokens() const {
    return encoder_tokens_.has_value() ? &*encoder_tokens_ : nullptr;
  }

  // Reads an adapter in peft's layout, which is not used yet, and returns its number. INVALID_ARGUMENT if it does not
  // fit the model.
  absl::StatusOr<size_t> LoadAdapter(const std::string& directory);
  // The same, and uses it behind those that are used already. INVALID_ARGUMENT if it does not go together with those.
  absl::Status AddAdapter(const std::string& directory);
  // Numbers of those that are used.
  absl::Span<const size_t> used_adapters() const { return numbers_; }
  const StoredAdapter& adapter(size_t number) const { return *adapters_[number]; }
  // Uses these, one behind the other, instead of those before; none: the model alone. INVALID_ARGUMENT for numbers that
  // there are not and for adapters that do not go together.
  absl::Status UseAdapters(absl::Span<const size_t> numbers);
  // Makes the adapters that are used part of the model's own weights, and none is used afterwards. INVALID_ARGUMENT if
  // one cannot be.
  absl::Status Merge();

  // Tokens of a document: <|endoftext|>, if the tokenizer has one, then the text, in which it counts as characters.
  // That is how training saw documents, so that the first token of the text is predicted too.
  absl::StatusOr<std::vector<uint32_t>> EncodeDocument(absl::string_view text) const;

  // result[i] = log p(tokens[i + 1] | the tokens before it), in nats; one less than there are tokens. Windows of
  // `context` predictions begin every `stride` tokens, 1 <= stride <= context; a prediction counts in the first window
  // that has it. With stride == context these are the blocks in which training evaluates; a smaller stride gives each
  // prediction a longer past: all but the first ones see at least context - stride tokens.
  // INVALID_ARGUMENT for fewer than two tokens, an id that is not in the vocabulary, and for an encoder
  // (masked_scores.h).
  absl::StatusOr<std::vector<float>> LogProbabilities(absl::Span<const uint32_t> tokens, int64_t stride);

  // The mean of the last layer's normalised outputs over the tokens, of the last `context` ones; [hidden_size]. An
  // encoder reads them between [CLS] and [SEP], and tokens that stand for no text are left out.
  absl::StatusOr<std::vector<float>> Embed(absl::Span<const uint32_t> tokens);

  // The tokens whose input embeddings have the largest cosine with that of `id`, without itself, the nearest first.
  struct Neighbour {
    uint32_t id = 0;
    float similarity = 0;
  };
  absl::StatusOr<std::vector<Neighbour>> Nearest(uint32_t id, int64_t count) const;

  // Draws up to `max_tokens` tokens one after another behind the prompt, a function of prompt, options and seed, and
  // gives each to `each` with its log-probability before temperature and cuts; ends early when that returns false or
  // after <|endoftext|>, which is not given. When the context is full, its older half is forgotten.
  // INVALID_ARGUMENT for an empty prompt, and if the network does not extend.
  absl::Status Generate(absl::Span<const uint32_t> prompt, const SamplingOptions& sampling, int64_t max_tokens,
                        uint64_t seed, absl::FunctionRef<bool(uint32_t id, float log_probability)> each);

 private:
  LanguageModel() = default;
  absl::Status CheckIds(absl::Span<const uint32_t> tokens) const;

  const kernels::Compute* compute_ = nullptr;
  Configuration configuration_;
  std::unique_ptr<Network> network_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::optional<text::EncoderTokens> encoder_tokens_;
  Weights kind_ = Weights::kComputed;
  Arena memory_;
  float* weights_ = nullptr;
  std::vector<std::unique_ptr<StoredAdapter>> adapters_;
  std::vector<size_t> numbers_;  // of those that are used
  std::vector<ActiveAdapter> used_;
};

}  // namespace millrace::model
