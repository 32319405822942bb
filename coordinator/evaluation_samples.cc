#include "coordinator/evaluation_samples.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/job_file.h"
#include "common/status.h"
#include "coordinator/job_data.h"
#include "text/chat_template.h"
#include "text/readable_text.h"

namespace millrace::coordinator {
namespace {

absl::StatusOr<std::vector<uint32_t>> Encode(const std::string& prompt, const text::Tokenizer& tokenizer,
                                             const std::optional<text::ChatTemplate>& chat) {
  if (chat.has_value()) {
    const std::vector<text::Message> messages = {{"user", prompt}};
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatText asked, chat->Prompt(messages));
    MILLRACE_ASSIGN_OR_RETURN(text::ChatTokens tokens, text::EncodeChat(asked, tokenizer));
    return std::move(tokens.ids);
  }
  std::vector<uint32_t> ids;
  if (const std::optional<uint32_t> begin = tokenizer.end_of_text(); begin.has_value()) ids.push_back(*begin);
  MILLRACE_RETURN_IF_ERROR(tokenizer.EncodeOrdinary(prompt, &ids));
  if (ids.empty()) return absl::InvalidArgumentError("is empty, and the tokenizer has no <|endoftext|> to start from");
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EvaluationSamples>> EvaluationSamples::Open(const v1::JobSpec& job,
                                                                           const v1::PhaseSpec& phase,
                                                                           const std::string& job_data,
                                                                           const std::string& base_directory) {
  std::unique_ptr<EvaluationSamples> samples(new EvaluationSamples());
  samples->phase_ = phase.name();
  samples->spec_ = phase.evaluate().samples();
  MILLRACE_ASSIGN_OR_RETURN(samples->tokenizer_, text::LoadTokenizer(job_data));
  const text::Tokenizer& tokenizer = *samples->tokenizer_;
  std::optional<text::ChatTemplate> chat;
  if (ExamplesOf(phase.objective()).has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(chat, text::ChatTemplate::Load(phase.chat(), tokenizer, base_directory));
    MILLRACE_ASSIGN_OR_RETURN(const uint32_t end, text::EndOfTurn(*chat, tokenizer));
    samples->ends_.push_back(end);
  }
  if (const std::optional<uint32_t> end = tokenizer.end_of_text();
      end.has_value() && samples->ends_ != std::vector{*end}) {
    samples->ends_.push_back(*end);
  }
  const uint32_t context = TextContext(job.model(), phase);
  for (int i = 0; i < samples->spec_.prompts_size(); ++i) {
    const std::string field = absl::StrCat("phase ", phase.name(), ": evaluate.samples.prompts.", i);
    absl::StatusOr<std::vector<uint32_t>> ids = Encode(samples->spec_.prompts(i), tokenizer, chat);
    if (!ids.ok()) return Annotate(ids.status(), field);
    if (ids->size() >= context) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " has ", ids->size(), " tokens, which leaves no room in a ", "context of ", context));
    }
    samples->prompts_.push_back(*std::move(ids));
  }
  return samples;
}

v1::WorkUnit EvaluationSamples::Unit(uint64_t epoch, uint64_t version) const {
  v1::WorkUnit unit;
  unit.set_kind(v1::WorkUnit::SAMPLE);
  unit.set_epoch(epoch);
  unit.set_version(version);
  unit.set_loss_denominator(static_cast<double>(prompts_.size()));
  v1::Microbatch* const microbatch = unit.add_microbatches();
  for (size_t i = 0; i < prompts_.size(); ++i) {
    v1::Prompt* const prompt = microbatch->add_prompts();
    prompt->set_index(i);
    prompt->set_tokens(prompts_[i].data(), prompts_[i].size() * sizeof(uint32_t));
  }
  return unit;
}

absl::StatusOr<v1::SamplesEvent> EvaluationSamples::Read(uint64_t version, const v1::WorkResult& result) const {
  if (result.experiences_size() != static_cast<int>(prompts_.size())) {
    return absl::InternalError(absl::StrCat("evaluation at step ", version, ": workers report ",
                                            result.experiences_size(), " texts where ", prompts_.size(),
                                            " were asked for"));
  }
  v1::SamplesEvent event;
  event.set_phase(phase_);
  event.set_step(version);
  for (size_t i = 0; i < prompts_.size(); ++i) {
    const std::string& tokens = result.experiences(static_cast<int>(i)).tokens();
    std::vector<uint32_t> ids(tokens.size() / sizeof(uint32_t));
    std::memcpy(ids.data(), tokens.data(), ids.size() * sizeof(uint32_t));
    const size_t begin = prompts_[i].size();
    const bool ours = ids.size() > begin && std::equal(prompts_[i].begin(), prompts_[i].end(), ids.begin());
    if (!ours || ids.size() - begin > spec_.max_tokens()) {
      return absl::InternalError(absl::StrCat("evaluation at step ", version, ": text ", i, " has ", ids.size(),
                                              " tokens, which do not continue its prompt of ", begin, " by 1 to ",
                                              spec_.max_tokens()));
    }
    auto written = absl::MakeConstSpan(ids).subspan(begin);
    const bool ended = std::find(ends_.begin(), ends_.end(), written.back()) != ends_.end();
    if (ended) written.remove_suffix(1);
    v1::Sample* const sample = event.add_samples();
    sample->set_prompt(text::ReadableTextOf(spec_.prompts(static_cast<int>(i))));
    sample->set_text(text::ReadableTextOf(tokenizer_->Decode(written)));
    sample->set_tokens(static_cast<uint32_t>(written.size()));
    sample->set_ended(ended);
  }
  return event;
}

}  // namespace millrace::coordinator
