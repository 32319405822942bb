#include "model/objectives/causal_lm.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/rows.h"

namespace millrace::model {
namespace {

constexpr int64_t kLogitFloats = 1 << 20;
constexpr int64_t kLeastPiece = 64;

}  // namespace

absl::StatusOr<CausalLm> CausalLm::Create(const Decoder* decoder, const kernels::Compute* compute, int64_t tokens,
                                          int64_t columns, bool for_training) {
  CausalLm made(decoder, compute);
  MILLRACE_ASSIGN_OR_RETURN(made.memory_, decoder->NewMemory(tokens, columns, for_training));
  const auto vocab = static_cast<int64_t>(decoder->vocab_size());
  made.piece_ = std::min(std::max(kLeastPiece, kLogitFloats / vocab / 2 * 2), (tokens + 1) / 2 * 2);
  const auto lay_out = [&](Arena* arena) {
    made.logits_ = arena->Take(made.piece_ * vocab);
    made.losses_ = arena->Take(made.piece_);
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(made.arena_, Arena::Create(measure.taken()));
  lay_out(&made.arena_);
  return made;
}

absl::Status CausalLm::Check(const Batch& batch) const {
  if (batch.rows < 1 || batch.columns < 2 || batch.first_scored < 0 || batch.first_scored >= batch.columns - 1) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", batch.rows, " x ", batch.columns,
                                                   " tokens, scored from ", batch.first_scored, ", predicts nothing"));
  }
  for (int64_t i = 0; i < batch.rows * batch.columns; ++i) {
    if (batch.ids[i] >= decoder_->vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", batch.ids[i], " is not below the vocabulary's ", decoder_->vocab_size()));
    }
  }
  return absl::OkStatus();
}

void CausalLm::TakeTargets(const Batch& batch, int64_t begin, int64_t count) {
  const int64_t columns = batch.columns - 1;
  targets_.clear();
  for (int64_t i = begin; i < begin + count; ++i) {
    targets_.push_back(batch.ids[i / columns * batch.columns + i % columns + 1]);
  }
}

absl::StatusOr<double> CausalLm::Loss(const float* weights, const Batch& batch, GroupHook need,
                                      float* log_probabilities) {
  MILLRACE_RETURN_IF_ERROR(Check(batch));
  const int64_t columns = batch.columns - 1, tokens = batch.rows * columns, hidden = decoder_->hidden_size();
  MILLRACE_ASSIGN_OR_RETURN(
      const float* const outputs,
      decoder_->Forward(*compute_, weights, {batch.ids, batch.rows, columns, batch.columns}, {}, need, memory_.get()));
  const kernels::FlushDenormals flush;
  const float* const embedding = weights + decoder_->tensors()[decoder_->output_embedding()].offset;
  const Linear linear = {hidden, decoder_->vocab_size(), false, decoder_->precision()};
  double sum = 0;
  for (int64_t begin = 0; begin < tokens; begin += piece_) {
    const int64_t rows = std::min(piece_, tokens - begin);
    TakeTargets(batch, begin, rows);
    LinearForward(*compute_, linear, outputs + begin * hidden, rows, embedding, nullptr, logits_, linear.outputs);
    kernels::CrossEntropyRows(*compute_, logits_, targets_.data(), rows, linear.outputs, 0.0f, losses_);
    for (int64_t i = 0; i < rows; ++i) {
      if (log_probabilities != nullptr) log_probabilities[begin + i] = -losses_[i];
      if ((begin + i) % columns >= batch.first_scored) sum += static_cast<double>(losses_[i]);
    }
  }
  return sum;
}

absl::StatusOr<double> CausalLm::Gradients(const float* weights, const Batch& batch, const Noise& noise, float scale,
                                           GroupHook need, float* gradients, GroupHook final) {
  MILLRACE_RETURN_IF_ERROR(Check(batch));
  const int64_t columns = batch.columns - 1, tokens = batch.rows * columns, hidden = decoder_->hidden_size();
  const TokenMatrix inputs = {batch.ids, batch.rows, columns, batch.columns};
  MILLRACE_ASSIGN_OR_RETURN(const float* const outputs,
                            decoder_->Forward(*compute_, weights, inputs, noise, need, memory_.get()));
  double sum = 0;
  {
    const kernels::FlushDenormals flush;
    const int64_t offset = decoder_->tensors()[decoder_->output_embedding()].offset;
    const Linear linear = {hidden, decoder_->vocab_size(), false, decoder_->precision()};
    float* const d_outputs = decoder_->OutputGradient(memory_.get());
    for (int64_t begin = 0; begin < tokens; begin += piece_) {
      const int64_t rows = std::min(piece_, tokens - begin);
      TakeTargets(batch, begin, rows);
      LinearForward(*compute_, linear, outputs + begin * hidden, rows, weights + offset, nullptr, logits_,
                    linear.outputs);
      kernels::CrossEntropyRows(*compute_, logits_, targets_.data(), rows, linear.outputs, scale, losses_);
      for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(losses_[i]);
      LinearBackward(*compute_, linear, outputs + begin * hidden, rows, weights + offset, logits_, linear.outputs,
                     d_outputs + begin * hidden, false, gradients + offset, nullptr);
    }
  }
  MILLRACE_RETURN_IF_ERROR(decoder_->Backward(*compute_, weights, inputs, noise, gradients, final, memory_.get()));
  return sum;
}

}  // namespace millrace::model
