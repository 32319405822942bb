#include "model/rollouts.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "kernels/rows.h"
#include "model/layers/linear.h"

namespace millrace::model {

absl::StatusOr<Rollouts> Rollouts::Create(const Network* network, const kernels::Compute* compute, int64_t together,
                                          int64_t columns) {
  MILLRACE_RETURN_IF_ERROR(network->CheckExtends());
  if (network->output_embedding() < 0) {
    return absl::InvalidArgumentError("a model with a scalar head predicts no tokens");
  }
  if (together < 1 || columns < 1 || columns > network->spec().context()) {
    return absl::InvalidArgumentError(absl::StrCat(together, " answers at a time in sequences of ", columns,
                                                   " tokens do not fit a model with context ",
                                                   network->spec().context()));
  }
  Rollouts made(network, compute);
  made.columns_ = columns;
  MILLRACE_ASSIGN_OR_RETURN(made.cache_, network->NewCache(together + 1, columns, std::max(together, columns)));
  made.seats_.resize(static_cast<size_t>(together));
  made.outputs_.resize(static_cast<size_t>(together * network->hidden_size()));
  return made;
}

absl::Status Rollouts::Check(absl::Span<const Prompt> prompts, const RolloutOptions& options) const {
  if (options.max_tokens < 1) return absl::InvalidArgumentError("answers of fewer than one token");
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto length = static_cast<int64_t>(prompts[i].ids.size());
    if (length == 0) return absl::InvalidArgumentError(absl::StrCat("prompt ", i, " is empty"));
    if (length > columns_) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt ", i, " has ", length, " tokens, which leaves no room for an answer in ", columns_ + 1));
    }
    MILLRACE_RETURN_IF_ERROR(
        Annotate(network_->CheckIds({prompts[i].ids.data(), 1, length, length}), absl::StrCat("prompt ", i)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Answer>> Rollouts::Sample(const NetworkWeights& weights, absl::Span<const Prompt> prompts,
                                                     const RolloutOptions& options) {
  MILLRACE_RETURN_IF_ERROR(Check(prompts, options));
  const int64_t hidden = network_->hidden_size(), of_prompt = static_cast<int64_t>(seats_.size());
  size_t count = 0;
  for (const Prompt& prompt : prompts) count += prompt.keys.size();
  std::vector<Answer> answers(count);
  std::fill(seats_.begin(), seats_.end(), Seat());
  MILLRACE_RETURN_IF_ERROR(network_->Begin(*compute_, weights, cache_.get()));
  std::vector<float> prompt_output;  // of the last token of the prompt before whose answers `sample` counts
  size_t prompt = 0, sample = 0, begun = 0;
  for (size_t ended = 0; ended < count;) {
    for (size_t seat = 0; seat < seats_.size() && begun < count; ++seat) {
      if (seats_[seat].answer != nullptr) continue;
      while (sample == prompts[prompt].keys.size()) {
        ++prompt;
        sample = 0;
      }
      const std::vector<uint32_t>& ids = prompts[prompt].ids;
      const auto length = static_cast<int64_t>(ids.size());
      if (sample == 0) {
        network_->ClearSequence(of_prompt, cache_.get());
        const Network::Appended appended = {of_prompt, ids};
        const float* const outputs =
            network_->Extend(*compute_, weights, absl::MakeConstSpan(&appended, 1), cache_.get());
        prompt_output.assign(outputs + (length - 1) * hidden, outputs + length * hidden);
      }
      network_->CopySequence(of_prompt, static_cast<int64_t>(seat), cache_.get());
      std::copy(prompt_output.begin(), prompt_output.end(), outputs_.data() + static_cast<int64_t>(seat) * hidden);
      seats_[seat] = {&answers[begun++], prompts[prompt].keys[sample++],
                      std::min(options.max_tokens, columns_ + 1 - length)};
    }
    const auto taken = [this] {
      return static_cast<size_t>(
          std::count_if(seats_.begin(), seats_.end(), [](const Seat& seat) { return seat.answer != nullptr; }));
    };
    const size_t before = taken();
    MILLRACE_RETURN_IF_ERROR(Draw(weights, options));
    const size_t left = taken();
    ended += before - left;
    if (left > 0) Extend(weights);
  }
  return answers;
}

absl::Status Rollouts::Draw(const NetworkWeights& weights, const RolloutOptions& options) {
  const int64_t hidden = network_->hidden_size(), vocab = network_->vocab_size();
  std::vector<size_t> taken;
  std::vector<float> outputs;
  for (size_t seat = 0; seat < seats_.size(); ++seat) {
    if (seats_[seat].answer == nullptr) continue;
    taken.push_back(seat);
    const float* const output = outputs_.data() + static_cast<int64_t>(seat) * hidden;
    outputs.insert(outputs.end(), output, output + hidden);
  }
  const auto rows = static_cast<int64_t>(taken.size());
  std::vector<float> logits(static_cast<size_t>(rows * vocab)), losses(taken.size());
  std::vector<uint32_t> ids(taken.size());
  LinearForward(*compute_, {hidden, vocab, false, network_->precision()}, outputs.data(), rows,
                weights.base + network_->tensors()[network_->output_embedding()].offset, nullptr, logits.data(), vocab);
  for (const float logit : logits) {
    if (!std::isfinite(logit)) return absl::InvalidArgumentError("the model's logits are not finite");
  }
  compute_->ParallelFor(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Seat& seat = seats_[taken[static_cast<size_t>(row)]];
      const float uniform = UniformFloat(seat.key(0, seat.answer->ids.size())[0]);
      ids[static_cast<size_t>(row)] = model::Sample(
          absl::MakeConstSpan(logits.data() + row * vocab, static_cast<size_t>(vocab)), options.sampling, uniform);
    }
  });
  kernels::CrossEntropy about = {.targets = ids.data(), .loss = losses.data()};
  if (options.sampling.temperature > 0) about.temperature = static_cast<float>(options.sampling.temperature);
  kernels::CrossEntropyRows(*compute_, logits.data(), rows, vocab, about);
  for (size_t row = 0; row < taken.size(); ++row) {
    Seat& seat = seats_[taken[row]];
    seat.answer->ids.push_back(ids[row]);
    seat.answer->log_probabilities.push_back(-losses[row]);
    seat.answer->stopped = std::find(options.stop.begin(), options.stop.end(), ids[row]) != options.stop.end();
    if (seat.answer->stopped || static_cast<int64_t>(seat.answer->ids.size()) == seat.limit ||
        (options.ends && options.ends(seat.answer->ids))) {
      seat.answer = nullptr;
    }
  }
  return absl::OkStatus();
}

void Rollouts::Extend(const NetworkWeights& weights) {
  const int64_t hidden = network_->hidden_size();
  std::vector<Network::Appended> appended;
  for (size_t seat = 0; seat < seats_.size(); ++seat) {
    if (seats_[seat].answer == nullptr) continue;
    appended.push_back({static_cast<int64_t>(seat), absl::MakeConstSpan(&seats_[seat].answer->ids.back(), 1)});
  }
  const float* outputs = network_->Extend(*compute_, weights, appended, cache_.get());
  for (const Network::Appended& about : appended) {
    std::copy_n(outputs, hidden, outputs_.data() + about.sequence * hidden);
    outputs += hidden;
  }
}

}  // namespace millrace::model
