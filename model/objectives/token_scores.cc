#include "model/objectives/token_scores.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"

namespace millrace::model {
namespace {

constexpr int64_t kLogitFloats = 2 << 20;
constexpr int64_t kLeastPiece = 64;

}  // namespace

int64_t Batch::predictions() const {
  if (starts == nullptr && scored == nullptr) return rows * (columns - 1 - first_scored);
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 1; column < columns; ++column) count += Counts(row, column) ? 1 : 0;
  }
  return count;
}

absl::StatusOr<TokenScores> TokenScores::Create(const Network* network, const kernels::Compute* compute, int64_t tokens,
                                                int64_t columns, bool for_training) {
  MILLRACE_RETURN_IF_ERROR(network->CheckExtends());
  if (network->output_embedding() < 0) {
    return absl::InvalidArgumentError("a model with a scalar head predicts no tokens");
  }
  TokenScores made(network, compute);
  MILLRACE_ASSIGN_OR_RETURN(made.memory_, network->NewMemory(tokens, columns, for_training));
  const auto vocab = static_cast<int64_t>(network->vocab_size());
  made.piece_ = std::min(std::max(kLeastPiece, kLogitFloats / vocab / 2 * 2), (tokens + 1) / 2 * 2);
  const auto lay_out = [&](Arena* arena) {
    made.logits_ = arena->Take(made.piece_ * vocab);
    made.losses_ = arena->Take(made.piece_);
    made.gathered_ = arena->Take(made.piece_ * network->hidden_size());
    if (for_training) made.d_gathered_ = arena->Take(made.piece_ * network->hidden_size());
  };
  Arena measure;
  lay_out(&measure);
  MILLRACE_ASSIGN_OR_RETURN(made.arena_, Arena::Create(measure.taken()));
  lay_out(&made.arena_);
  return made;
}

absl::Status TokenScores::TakeTargets(const Batch& batch) {
  if (batch.rows < 1 || batch.columns < 2 || batch.first_scored < 0 || batch.first_scored >= batch.columns - 1) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", batch.rows, " x ", batch.columns,
                                                   " tokens, scored from ", batch.first_scored, ", predicts nothing"));
  }
  MILLRACE_RETURN_IF_ERROR(network_->CheckIds({batch.ids, batch.rows, batch.columns, batch.columns}));
  places_.clear();
  targets_.clear();
  for (int64_t row = 0; row < batch.rows; ++row) {
    for (int64_t column = 0; column < batch.columns; ++column) {
      const int64_t at = row * batch.columns + column;
      if (batch.Counts(row, column)) {
        places_.push_back(row * (batch.columns - 1) + column - 1);
        targets_.push_back(batch.ids[at]);
      } else if (batch.scored != nullptr && batch.scored[at] != 0 &&
                 (column == 0 || (batch.starts != nullptr && batch.starts[at] == column))) {
        return absl::InvalidArgumentError(absl::StrCat("row ", row, ", column ", column,
                                                       ": the token is scored, but it begins a sequence, so that "
                                                       "nothing predicts it"));
      }
    }
  }
  if (targets_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", batch.rows, " x ", batch.columns,
                                                   " tokens of which none is scored predicts nothing"));
  }
  return absl::OkStatus();
}

TokenMatrix TokenScores::Inputs() const {
  return {batch_.ids, batch_.rows, batch_.columns - 1, batch_.columns, batch_.starts};
}

absl::Status TokenScores::Forward(const NetworkWeights& weights, const Batch& batch, const Noise& noise,
                                  GroupHook need) {
  MILLRACE_RETURN_IF_ERROR(TakeTargets(batch));
  weights_ = weights;
  batch_ = batch;
  noise_ = noise;
  MILLRACE_ASSIGN_OR_RETURN(outputs_, network_->Forward(*compute_, weights, Inputs(), noise, need, memory_.get()));
  return absl::OkStatus();
}

bool TokenScores::Adjacent(int64_t begin, int64_t count) const {
  return places_[static_cast<size_t>(begin + count - 1)] - places_[static_cast<size_t>(begin)] == count - 1;
}

const float* TokenScores::OutputsOf(int64_t begin, int64_t count) {
  const int64_t hidden = network_->hidden_size();
  if (Adjacent(begin, count)) return outputs_ + places_[static_cast<size_t>(begin)] * hidden;
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(outputs_ + places_[static_cast<size_t>(begin + i)] * hidden, hidden, gathered_ + i * hidden);
  }
  return gathered_;
}

Linear TokenScores::Projection() const {
  return {network_->hidden_size(), network_->vocab_size(), false, network_->precision()};
}

const float* TokenScores::Embedding() const {
  return weights_.base + network_->tensors()[network_->output_embedding()].offset;
}

void TokenScores::MakeLogits(const float* outputs, int64_t count) {
  LinearForward(*compute_, Projection(), outputs, count, Embedding(), nullptr, logits_, network_->vocab_size());
}

void TokenScores::Score(float temperature, absl::Span<float> log_probabilities, absl::Span<float> entropies) {
  const kernels::FlushDenormals flush;
  for (int64_t begin = 0; begin < predictions(); begin += piece_) {
    const int64_t count = std::min(piece_, predictions() - begin);
    MakeLogits(OutputsOf(begin, count), count);
    kernels::CrossEntropy about;
    about.targets = targets_.data() + begin;
    about.temperature = temperature;
    about.loss = losses_;
    about.entropy = entropies.empty() ? nullptr : entropies.data() + begin;
    kernels::CrossEntropyRows(*compute_, logits_, count, network_->vocab_size(), about);
    for (int64_t i = 0; i < count; ++i) log_probabilities[static_cast<size_t>(begin + i)] = -losses_[i];
  }
}

absl::Status TokenScores::Backward(const Derivatives& derivatives, Trainable trainable, float* gradients,
                                   GroupHook final, absl::Span<float> log_probabilities) {
  const int64_t hidden = network_->hidden_size(), inputs = batch_.rows * (batch_.columns - 1);
  const int embedding = network_->output_embedding();
  float* const d_embedding = trainable == nullptr || (*trainable)[static_cast<size_t>(embedding)]
                                 ? gradients + network_->tensors()[embedding].offset
                                 : nullptr;
  float* const d_outputs =
      network_->NeedsOutputGradient(weights_, trainable) ? network_->OutputGradient(memory_.get()) : nullptr;
  {
    const kernels::FlushDenormals flush;
    if (d_outputs != nullptr && predictions() < inputs) std::fill_n(d_outputs, inputs * hidden, 0.0f);
    std::vector<float> d_losses(static_cast<size_t>(piece_));
    for (int64_t begin = 0; begin < predictions(); begin += piece_) {
      const int64_t count = std::min(piece_, predictions() - begin);
      const float* const outputs = OutputsOf(begin, count);
      MakeLogits(outputs, count);
      for (int64_t i = 0; i < count; ++i) {
        d_losses[static_cast<size_t>(i)] = -derivatives.of_log_probabilities[static_cast<size_t>(begin + i)];
      }
      kernels::CrossEntropy about;
      about.targets = targets_.data() + begin;
      about.temperature = derivatives.temperature;
      about.loss = losses_;
      about.d_loss = d_losses.data();
      about.d_entropy = derivatives.of_entropies.empty() ? nullptr : derivatives.of_entropies.data() + begin;
      kernels::CrossEntropyRows(*compute_, logits_, count, network_->vocab_size(), about);
      if (!log_probabilities.empty()) {
        for (int64_t i = 0; i < count; ++i) log_probabilities[static_cast<size_t>(begin + i)] = -losses_[i];
      }
      const bool adjacent = Adjacent(begin, count);
      float* const to = d_outputs == nullptr ? nullptr
                        : adjacent           ? d_outputs + places_[static_cast<size_t>(begin)] * hidden
                                             : d_gathered_;
      LinearBackward(*compute_, Projection(), outputs, count, Embedding(), logits_, network_->vocab_size(), to, false,
                     d_embedding, nullptr);
      if (to == nullptr || adjacent) continue;
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(d_gathered_ + i * hidden, hidden, d_outputs + places_[static_cast<size_t>(begin + i)] * hidden);
      }
    }
  }
  return network_->Backward(*compute_, weights_, Inputs(), noise_, trainable, gradients, final, memory_.get());
}

}  // namespace millrace::model
