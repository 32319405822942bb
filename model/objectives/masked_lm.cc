#include "model/objectives/masked_lm.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/functions.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"
#include "model/layers/norm.h"

namespace millrace::model {
namespace {

constexpr int64_t kLogitFloats = 1 << 20;
constexpr int64_t kLeastPiece = 64;

// Whether no other element is larger.
bool IsLargest(const float* row, int64_t columns, uint32_t of) {
  return std::all_of(row, row + columns, [&](float value) { return value <= row[of]; });
}

}  // namespace

absl::StatusOr<MaskedLm> MaskedLm::Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                          int64_t columns, bool for_training) {
  if (network->masked_head() == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("a model of the family ", network->spec().family(),
                                                   " is no encoder: it fills in no hidden tokens"));
  }
  MaskedLm made(network, compute);
  MILLRACE_ASSIGN_OR_RETURN(made.memory_, network->NewMemory(tokens, columns, for_training));
  const auto vocab = static_cast<int64_t>(network->vocab_size());
  made.piece_ = std::min(std::max(kLeastPiece, kLogitFloats / vocab / 2 * 2), (tokens + 1) / 2 * 2);
  const auto lay_out = [&](Arena* arena) {
    const int64_t hidden = tokens * network->hidden_size();
    made.logits_ = arena->Take(made.piece_ * vocab);
    for (float** const memory :
         {&made.gathered_, &made.transformed_, &made.activated_, &made.normed_, &made.first_, &made.pooled_}) {
      *memory = arena->Take(hidden);
    }
    made.mean_ = arena->Take(tokens);
    made.rstd_ = arena->Take(tokens);
    made.pair_logits_ = arena->Take(2 * tokens);
    if (!for_training) return;
    for (float** const memory : {&made.d_normed_, &made.d_gathered_, &made.d_pooled_, &made.d_first_}) {
      *memory = arena->Take(hidden);
    }
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(made.arena_, Arena::Create(measure.taken()));
  lay_out(&made.arena_);
  return made;
}

absl::Status MaskedLm::Check(const MaskedBatch& batch) {
  const auto wrong = [](absl::string_view what) { return absl::InvalidArgumentError(what); };
  const TokenMatrix& tokens = batch.tokens;
  MILLRACE_RETURN_IF_ERROR(network_->CheckIds(tokens));
  if (batch.places.size() != batch.targets.size()) {
    return wrong(absl::StrCat(batch.places.size(), " hidden tokens and ", batch.targets.size(), " that were there"));
  }
  if (!batch.follows.empty() && static_cast<int64_t>(batch.follows.size()) != tokens.rows) {
    return wrong(absl::StrCat(batch.follows.size(), " answers to which piece follows which in ", tokens.rows, " rows"));
  }
  if (batch.places.empty() && batch.follows.empty()) return wrong("nothing is hidden and nothing is asked");
  hidden_of_row_.assign(static_cast<size_t>(tokens.rows), 0);
  for (size_t i = 0; i < batch.places.size(); ++i) {
    const int64_t place = batch.places[i];
    if (place < 0 || place >= tokens.tokens() || (i > 0 && place <= batch.places[i - 1])) {
      return wrong(absl::StrCat("a token is hidden at place ", place, " of ", tokens.tokens(),
                                ", which is outside or not behind the one before"));
    }
    if (batch.targets[i] >= network_->vocab_size()) {
      return wrong(
          absl::StrCat("token id ", batch.targets[i], " is not below the vocabulary's ", network_->vocab_size()));
    }
    ++hidden_of_row_[static_cast<size_t>(place / tokens.columns)];
  }
  return absl::OkStatus();
}

absl::Status MaskedLm::Forward(const NetworkWeights& weights, const MaskedBatch& batch, const Noise& noise,
                               GroupHook need) {
  MILLRACE_RETURN_IF_ERROR(Check(batch));
  weights_ = weights.base;
  MILLRACE_ASSIGN_OR_RETURN(outputs_, network_->Forward(*compute_, weights, batch.tokens, noise, need, memory_.get()));
  const kernels::FlushDenormals flush;
  const MaskedHead& head = *network_->masked_head();
  const int64_t hidden = network_->hidden_size(), count = static_cast<int64_t>(batch.places.size());
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(outputs_ + batch.places[static_cast<size_t>(i)] * hidden, hidden, gathered_ + i * hidden);
  }
  if (count > 0) {
    LinearForward(*compute_, LinearOf(hidden), gathered_, count, At(head.transform.weight), At(head.transform.bias),
                  transformed_, hidden);
    kernels::ErfGelu(compute_->isa(), transformed_, activated_, count * hidden);
    NormForward(*compute_, NormKind::kLayer, activated_, At(head.norm.gain), At(head.norm.bias),
                static_cast<float>(network_->spec().norm_epsilon()), count, hidden, normed_, mean_, rstd_);
  }
  if (batch.follows.empty()) return absl::OkStatus();
  const int64_t rows = batch.tokens.rows;
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(outputs_ + row * batch.tokens.columns * hidden, hidden, first_ + row * hidden);
  }
  LinearForward(*compute_, LinearOf(hidden), first_, rows, At(head.pooler.weight), At(head.pooler.bias), pooled_,
                hidden);
  kernels::Tanh(compute_->isa(), pooled_, pooled_, rows * hidden);
  LinearForward(*compute_, LinearOf(2), pooled_, rows, At(head.next_sentence.weight), At(head.next_sentence.bias),
                pair_logits_, 2);
  return absl::OkStatus();
}

void MaskedLm::Answer(const MaskedBatch& batch, int64_t begin, int64_t count, const float* d_losses,
                      MaskedAnswers* answers) {
  const int64_t hidden = network_->hidden_size(), vocab = network_->vocab_size();
  LinearForward(*compute_, LinearOf(vocab), normed_ + begin * hidden, count, At(network_->input_embedding()),
                At(network_->masked_head()->bias), logits_, vocab);
  const uint32_t* const targets = batch.targets.data() + begin;
  for (int64_t i = 0; i < count; ++i) {
    answers->right[static_cast<size_t>(begin + i)] = IsLargest(logits_ + i * vocab, vocab, targets[i]) ? 1 : 0;
  }
  kernels::CrossEntropyRows(*compute_, logits_, count, vocab,
                            {.targets = targets, .loss = answers->losses.data() + begin, .d_loss = d_losses});
}

void MaskedLm::AnswerNextSentence(const MaskedBatch& batch, const float* d_losses, MaskedAnswers* answers) {
  std::vector<uint32_t> targets(batch.follows.size());
  for (size_t row = 0; row < targets.size(); ++row) {
    targets[row] = batch.follows[row] != 0 ? 0 : 1;
    answers->next_sentence_right[row] = IsLargest(pair_logits_ + 2 * row, 2, targets[row]) ? 1 : 0;
  }
  kernels::CrossEntropyRows(
      *compute_, pair_logits_, batch.tokens.rows, 2,
      {.targets = targets.data(), .loss = answers->next_sentence_losses.data(), .d_loss = d_losses});
}

double MaskedLm::SumOf(const MaskedBatch& batch, const MaskedAnswers& answers) const {
  double sum = 0;
  size_t next = 0;
  for (size_t row = 0; row < hidden_of_row_.size(); ++row) {
    double of_row = 0;
    const size_t end = next + static_cast<size_t>(hidden_of_row_[row]);
    for (; next < end; ++next) of_row += static_cast<double>(answers.losses[next]);
    if (hidden_of_row_[row] > 0) sum += of_row / static_cast<double>(hidden_of_row_[row]);
    if (!batch.follows.empty()) sum += static_cast<double>(answers.next_sentence_losses[row]);
  }
  return sum;
}

namespace {

void Size(const MaskedBatch& batch, MaskedAnswers* answers) {
  answers->losses.resize(batch.places.size());
  answers->right.resize(batch.places.size());
  answers->next_sentence_losses.resize(batch.follows.size());
  answers->next_sentence_right.resize(batch.follows.size());
}

}  // namespace

absl::StatusOr<double> MaskedLm::Loss(const NetworkWeights& weights, const MaskedBatch& batch, GroupHook need,
                                      MaskedAnswers* answers) {
  MILLRACE_RETURN_IF_ERROR(Forward(weights, batch, {}, need));
  MaskedAnswers own;
  if (answers == nullptr) answers = &own;
  Size(batch, answers);
  const kernels::FlushDenormals flush;
  const int64_t all = static_cast<int64_t>(batch.places.size());
  for (int64_t begin = 0; begin < all; begin += piece_) {
    Answer(batch, begin, std::min(piece_, all - begin), nullptr, answers);
  }
  if (!batch.follows.empty()) AnswerNextSentence(batch, nullptr, answers);
  return SumOf(batch, *answers);
}

absl::StatusOr<double> MaskedLm::Gradients(const NetworkWeights& weights, const MaskedBatch& batch, const Noise& noise,
                                           float scale, GroupHook need, float* gradients, GroupHook final,
                                           Trainable trainable, MaskedAnswers* answers) {
  MILLRACE_RETURN_IF_ERROR(Forward(weights, batch, noise, need));
  MaskedAnswers own;
  if (answers == nullptr) answers = &own;
  Size(batch, answers);
  const MaskedHead& head = *network_->masked_head();
  const int64_t hidden = network_->hidden_size(), vocab = network_->vocab_size(), rows = batch.tokens.rows;
  const int64_t all = static_cast<int64_t>(batch.places.size());
  const bool below = network_->NeedsOutputGradient(weights, trainable);
  const auto gradient_of = [&](int tensor) { return GradientAt(network_->tensors(), gradients, tensor, trainable); };
  const auto linear = [&](const LinearTensors& tensors, int64_t outputs, const float* x, int64_t count, const float* dy,
                          float* dx) {
    LinearBackward(*compute_, LinearOf(outputs), x, count, At(tensors.weight), dy, outputs, dx, false,
                   gradient_of(tensors.weight), gradient_of(tensors.bias));
  };
  {
    const kernels::FlushDenormals flush;
    float* const d_outputs = below ? network_->OutputGradient(memory_.get()) : nullptr;
    if (below) std::fill_n(d_outputs, batch.tokens.tokens() * hidden, 0.0f);
    std::vector<float> d_losses(static_cast<size_t>(all));
    for (int64_t i = 0; i < all; ++i) {
      const int64_t row = batch.places[static_cast<size_t>(i)] / batch.tokens.columns;
      d_losses[static_cast<size_t>(i)] = scale / static_cast<float>(hidden_of_row_[static_cast<size_t>(row)]);
    }
    for (int64_t begin = 0; begin < all; begin += piece_) {
      const int64_t count = std::min(piece_, all - begin);
      Answer(batch, begin, count, d_losses.data() + begin, answers);
      linear({network_->input_embedding(), head.bias}, vocab, normed_ + begin * hidden, count, logits_,
             d_normed_ + begin * hidden);
    }
    if (all > 0) {
      std::fill_n(d_gathered_, all * hidden, 0.0f);
      NormBackward(*compute_, NormKind::kLayer, activated_, At(head.norm.gain), mean_, rstd_, d_normed_, all, hidden,
                   d_gathered_, gradient_of(head.norm.gain), gradient_of(head.norm.bias));
      kernels::ErfGeluBackward(compute_->isa(), transformed_, d_gathered_, d_normed_, all * hidden);
      linear(head.transform, hidden, gathered_, all, d_normed_, below ? d_gathered_ : nullptr);
      for (int64_t i = 0; below && i < all; ++i) {
        std::copy_n(d_gathered_ + i * hidden, hidden, d_outputs + batch.places[static_cast<size_t>(i)] * hidden);
      }
    }
    if (!batch.follows.empty()) {
      const std::vector<float> d_pairs(static_cast<size_t>(rows), scale);
      AnswerNextSentence(batch, d_pairs.data(), answers);
      linear(head.next_sentence, 2, pooled_, rows, pair_logits_, d_pooled_);
      // d tanh(z) = (1 - tanh(z)^2) dz
      for (int64_t i = 0; i < rows * hidden; ++i) d_pooled_[i] *= 1.0f - pooled_[i] * pooled_[i];
      linear(head.pooler, hidden, first_, rows, d_pooled_, below ? d_first_ : nullptr);
      for (int64_t row = 0; below && row < rows; ++row) {
        float* const to = d_outputs + row * batch.tokens.columns * hidden;
        for (int64_t i = 0; i < hidden; ++i) to[i] += d_first_[row * hidden + i];
      }
    }
  }
  MILLRACE_RETURN_IF_ERROR(
      network_->Backward(*compute_, weights, batch.tokens, noise, trainable, gradients, final, memory_.get()));
  return SumOf(batch, *answers);
}

}  // namespace millrace::model
