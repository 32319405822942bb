#include "model/language_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/philox.h"
#include "common/status.h"
#include "kernels/bfloat16.h"
#include "kernels/reduce.h"
#include "kernels/rows.h"
#include "model/formats/hugging_face.h"
#include "model/layers/linear.h"
#include "model/objectives/causal_lm.h"

namespace millrace::model {
namespace {

// Tokens that go through the model together when texts are scored.
constexpr int64_t kScoredTokens = 1024;

}  // namespace

LanguageModel::~LanguageModel() = default;

absl::StatusOr<std::unique_ptr<LanguageModel>> LanguageModel::Open(const std::string& directory,
                                                                   const kernels::Compute* compute, Weights weights) {
  std::error_code error;
  const bool adapted = std::filesystem::exists(absl::StrCat(directory, "/", kAdapterConfigFile), error);
  if (adapted && !std::filesystem::exists(absl::StrCat(directory, "/config.json"), error)) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string base, BaseOfAdapter(directory));
    absl::StatusOr<std::unique_ptr<LanguageModel>> model = Open(base, compute, weights);
    if (!model.ok()) {
      return Annotate(model.status(), absl::StrCat(directory, " holds an adapter of the model in ", base));
    }
    MILLRACE_RETURN_IF_ERROR((*model)->AddAdapter(directory));
    return model;
  }
  MILLRACE_ASSIGN_OR_RETURN(const Configuration configuration, ReadConfig(directory));
  if (configuration.head != Head::kLanguage) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, "/config.json: a model with a scalar head (a reward model) predicts no text"));
  }
  auto model = std::unique_ptr<LanguageModel>(new LanguageModel);
  model->compute_ = compute;
  model->kind_ = weights;
  model->configuration_ = configuration;
  absl::StatusOr<std::unique_ptr<Network>> network = CreateNetwork(configuration.spec, configuration.vocab_size);
  if (!network.ok()) return Annotate(network.status(), absl::StrCat(directory, "/config.json"));
  model->network_ = *std::move(network);
  MILLRACE_ASSIGN_OR_RETURN(model->tokenizer_, text::LoadTokenizer(directory));
  if (model->tokenizer_->vocab_size() > configuration.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(directory, ": tokenizer.json has ", model->tokenizer_->vocab_size(),
                                                   " tokens where config.json has ", configuration.vocab_size));
  }
  if (!model->network_->extends()) {
    absl::StatusOr<text::EncoderTokens> tokens =
        text::EncoderTokens::Create(text::SpecialTokensOf(*model->tokenizer_), configuration.vocab_size);
    if (!tokens.ok()) return Annotate(tokens.status(), absl::StrCat(directory, "/tokenizer.json"));
    model->encoder_tokens_ = *std::move(tokens);
  }
  const TensorList& tensors = model->network_->tensors();
  MILLRACE_ASSIGN_OR_RETURN(model->memory_, Arena::Create(tensors.floats()));
  model->weights_ = model->memory_.Take(tensors.floats());
  MILLRACE_RETURN_IF_ERROR(ReadWeights(directory, tensors, model->weights_));
  if (weights == Weights::kComputed && model->network_->precision() == kernels::Precision::kBf16) {
    kernels::KeepBf16(model->weights_, tensors.floats());
  }
  if (adapted) MILLRACE_RETURN_IF_ERROR(model->AddAdapter(directory));
  return model;
}

absl::StatusOr<size_t> LanguageModel::LoadAdapter(const std::string& directory) {
  MILLRACE_ASSIGN_OR_RETURN(StoredAdapter stored, ReadAdapter(directory, *network_));
  if (kind_ == Weights::kComputed && network_->precision() == kernels::Precision::kBf16) {
    kernels::KeepBf16(stored.weights.data(), static_cast<int64_t>(stored.weights.size()));
  }
  network_->ReserveVirtualTokens(stored.adapter->virtual_tokens());
  adapters_.push_back(std::make_unique<StoredAdapter>(std::move(stored)));
  return adapters_.size() - 1;
}

absl::Status LanguageModel::AddAdapter(const std::string& directory) {
  std::vector<size_t> numbers = numbers_;
  MILLRACE_ASSIGN_OR_RETURN(numbers.emplace_back(), LoadAdapter(directory));
  const absl::Status used = UseAdapters(numbers);
  if (!used.ok()) adapters_.pop_back();
  return Annotate(used, directory);
}

absl::Status LanguageModel::UseAdapters(absl::Span<const size_t> numbers) {
  std::vector<const Adapter*> stack;
  std::vector<ActiveAdapter> used;
  for (const size_t number : numbers) {
    if (number >= adapters_.size()) {
      return absl::InvalidArgumentError(absl::StrCat("there is no adapter ", number, " of ", adapters_.size()));
    }
    stack.push_back(adapters_[number]->adapter.get());
    used.push_back(adapters_[number]->active());
  }
  MILLRACE_RETURN_IF_ERROR(CheckStack(stack));
  numbers_.assign(numbers.begin(), numbers.end());
  used_ = std::move(used);
  return absl::OkStatus();
}

absl::Status LanguageModel::Merge() {
  for (const size_t number : numbers_) {
    if (!adapters_[number]->adapter->merges()) {
      return MergeAdapter(*compute_, *network_, *adapters_[number], weights_);
    }
  }
  for (const size_t number : numbers_) {
    MILLRACE_RETURN_IF_ERROR(MergeAdapter(*compute_, *network_, *adapters_[number], weights_));
  }
  return UseAdapters({});
}

absl::StatusOr<std::vector<uint32_t>> LanguageModel::EncodeDocument(absl::string_view text) const {
  std::vector<uint32_t> ids;
  if (const std::optional<uint32_t> end = tokenizer_->end_of_text(); end.has_value()) ids.push_back(*end);
  MILLRACE_RETURN_IF_ERROR(tokenizer_->EncodeOrdinary(text, &ids));
  return ids;
}

absl::Status LanguageModel::CheckIds(absl::Span<const uint32_t> tokens) const {
  for (const uint32_t id : tokens) {
    if (id >= network_->vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not below the vocabulary's ", network_->vocab_size()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> LanguageModel::LogProbabilities(absl::Span<const uint32_t> tokens, int64_t stride) {
  const auto predictions = static_cast<int64_t>(tokens.size()) - 1;
  if (predictions < 1) return absl::InvalidArgumentError("a text of fewer than two tokens: nothing is predicted");
  if (stride < 1 || stride > context()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a stride of ", stride, " is not between 1 and the context of ", context(), " tokens"));
  }
  MILLRACE_RETURN_IF_ERROR(CheckIds(tokens));
  std::vector<float> result(static_cast<size_t>(predictions));
  const int64_t window = std::min(context(), predictions);
  const int64_t rows_together = std::max<int64_t>(1, kScoredTokens / window);
  MILLRACE_ASSIGN_OR_RETURN(CausalLm causal_lm, CausalLm::Create(network_.get(), compute_, rows_together * window,
                                                                 window, /*for_training=*/false));
  std::vector<float> of_rows(static_cast<size_t>(rows_together * window));
  std::vector<uint32_t> ids;
  // Windows [begin, begin + window), each giving what no earlier one gave; the last one may be shorter.
  for (int64_t begin = 0, known = 0; known < predictions;) {
    int64_t rows = 0;
    const int64_t first = begin, length = std::min(window, predictions - begin);
    ids.clear();
    while (rows < rows_together && begin + length <= predictions && (rows == 0 || begin + window <= predictions)) {
      ids.insert(ids.end(), tokens.begin() + begin, tokens.begin() + begin + length + 1);
      ++rows;
      begin += stride;
    }
    const Batch batch = {ids.data(), rows, length + 1};
    MILLRACE_RETURN_IF_ERROR(causal_lm.Loss(weights(), batch, &IgnoreGroup, of_rows.data()).status());
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = first + row * stride;
      for (int64_t i = std::max(known, from); i < from + length; ++i) {
        result[static_cast<size_t>(i)] = of_rows[static_cast<size_t>(row * length + i - from)];
      }
      known = std::max(known, from + length);
    }
  }
  return result;
}

absl::StatusOr<std::vector<float>> LanguageModel::Embed(absl::Span<const uint32_t> tokens) {
  std::vector<uint32_t> sequence;  // an encoder's
  if (encoder_tokens_.has_value()) {
    for (const uint32_t id : tokens) {
      if (encoder_tokens_->IsOrdinary(id)) sequence.push_back(id);
    }
    tokens = sequence;
  }
  if (tokens.empty()) return absl::InvalidArgumentError("an empty text has no embedding");
  MILLRACE_RETURN_IF_ERROR(CheckIds(tokens));
  const auto all = static_cast<int64_t>(tokens.size());
  const int64_t count = std::min(all, context()), hidden = network_->hidden_size();
  TokenMatrix matrix = {tokens.data() + (all - count), 1, count, count};
  const int64_t around = encoder_tokens_.has_value() ? 1 : 0;
  if (around > 0) {
    sequence.erase(sequence.begin(), sequence.end() - count);
    sequence.insert(sequence.begin(), encoder_tokens_->begin());
    sequence.push_back(encoder_tokens_->separator());
    matrix = {sequence.data(), 1, count + 2, count + 2};
  }
  MILLRACE_ASSIGN_OR_RETURN(const Network::OwnedMemory memory,
                            network_->NewMemory(matrix.columns, matrix.columns, /*for_training=*/false));
  MILLRACE_ASSIGN_OR_RETURN(const float* const outputs,
                            network_->Forward(*compute_, weights(), matrix, {}, &IgnoreGroup, memory.get()));
  std::vector<float> mean(static_cast<size_t>(hidden), 0.0f);
  kernels::AddRows(*compute_, outputs + around * hidden, count, hidden, hidden, mean.data());
  for (float& value : mean) value /= static_cast<float>(count);
  return mean;
}

absl::StatusOr<std::vector<LanguageModel::Neighbour>> LanguageModel::Nearest(uint32_t id, int64_t count) const {
  MILLRACE_RETURN_IF_ERROR(CheckIds({id}));
  const int64_t hidden = network_->hidden_size();
  const float* const table = weights_ + network_->tensors()[network_->input_embedding()].offset;
  const auto row = [&](uint32_t token) { return table + static_cast<int64_t>(token) * hidden; };
  const float length = std::sqrt(kernels::SumSquares(row(id), hidden));
  std::vector<Neighbour> neighbours;
  for (uint32_t other = 0; other < network_->vocab_size(); ++other) {
    if (other == id) continue;
    const float lengths = length * std::sqrt(kernels::SumSquares(row(other), hidden));
    neighbours.push_back({other, lengths > 0 ? kernels::Dot(row(id), row(other), hidden) / lengths : 0.0f});
  }
  const auto kept = std::clamp<int64_t>(count, 0, static_cast<int64_t>(neighbours.size()));
  std::partial_sort(neighbours.begin(), neighbours.begin() + kept, neighbours.end(),
                    [](const Neighbour& a, const Neighbour& b) {
                      return a.similarity != b.similarity ? a.similarity > b.similarity : a.id < b.id;
                    });
  neighbours.resize(static_cast<size_t>(kept));
  return neighbours;
}

absl::Status LanguageModel::Generate(absl::Span<const uint32_t> prompt, const SamplingOptions& sampling,
                                     int64_t max_tokens, uint64_t seed,
                                     absl::FunctionRef<bool(uint32_t id, float log_probability)> each) {
  MILLRACE_RETURN_IF_ERROR(network_->CheckExtends());
  if (prompt.empty()) {
    return absl::InvalidArgumentError("an empty prompt: the tokenizer has no <|endoftext|> to start from");
  }
  MILLRACE_RETURN_IF_ERROR(CheckIds(prompt));
  const int64_t hidden = network_->hidden_size(), vocab = network_->vocab_size();
  const float* const embedding = weights_ + network_->tensors()[network_->output_embedding()].offset;
  const Linear linear = {hidden, vocab, false, network_->precision()};
  const Philox philox = SamplingKey(seed);
  MILLRACE_ASSIGN_OR_RETURN(const Network::OwnedCache cache, network_->NewCache(1, context(), context()));
  MILLRACE_RETURN_IF_ERROR(network_->Begin(*compute_, weights(), cache.get()));
  std::vector<uint32_t> ids(prompt.begin(), prompt.end());
  std::vector<float> logits(static_cast<size_t>(vocab)), copy;
  // ids[cached … ) are not in the cache yet.
  size_t cached = 0, held = 0;
  for (int64_t made = 0; made < max_tokens; ++made) {
    if (held + (ids.size() - cached) > static_cast<size_t>(context())) {
      // The older half goes; the newer one is computed again at its new positions.
      MILLRACE_RETURN_IF_ERROR(network_->Begin(*compute_, weights(), cache.get()));
      const size_t kept = made == 0 ? static_cast<size_t>(context()) : static_cast<size_t>(context() + 1) / 2;
      cached = ids.size() - std::min(ids.size(), kept);
      held = 0;
    }
    const absl::Span<const uint32_t> fresh = absl::MakeConstSpan(ids).subspan(cached);
    const float* const outputs = network_->Extend(*compute_, weights(), fresh, cache.get());
    held += fresh.size();
    cached = ids.size();
    LinearForward(*compute_, linear, outputs + static_cast<int64_t>(fresh.size() - 1) * hidden, 1, embedding, nullptr,
                  logits.data(), vocab);
    for (const float logit : logits) {
      if (!std::isfinite(logit)) return absl::InvalidArgumentError("the model's logits are not finite");
    }
    const uint32_t id = Sample(logits, sampling, UniformFloat(philox(0, static_cast<uint64_t>(made))[0]));
    if (tokenizer_->end_of_text() == id) return absl::OkStatus();
    copy = logits;
    float loss = 0;
    kernels::CrossEntropyRows(*compute_, copy.data(), 1, vocab, {.targets = &id, .loss = &loss});
    if (!each(id, -loss)) return absl::OkStatus();
    ids.push_back(id);
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
