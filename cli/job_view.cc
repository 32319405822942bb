#include "cli/job_view.h"

#include <cmath>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/job_file.h"
#include "text/readable_text.h"

namespace millrace::cli {

std::string StateName(v1::Job::State state) { return absl::AsciiStrToLower(v1::Job::State_Name(state)); }

bool HasEnded(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

void JobView::Show(const v1::JobEvent& event) {
  switch (event.event_case()) {
    case v1::JobEvent::kState: {
      const v1::StateEvent& state = event.state();
      std::string text = absl::StrCat("job ", event.job_id(), ": ", StateName(state.state()));
      if (!state.stop_reason().empty()) absl::StrAppend(&text, " (", state.stop_reason(), ")");
      if (!state.error().empty()) absl::StrAppend(&text, ": ", state.error());
      line_->Print(text);
      break;
    }
    case v1::JobEvent::kData: {
      const v1::DataEvent& data = event.data();
      std::string text = data.phase().empty() ? "text" : data.phase();
      const bool examples = data.scored_tokens() > 0 || (!data.phase().empty() && data.train_bytes() == 0);
      absl::StrAppendFormat(&text, ": %d %s (%d duplicates, %d skipped", data.documents(),
                            examples ? "examples" : "documents", data.duplicates(), data.skipped());
      if (data.truncated() > 0) absl::StrAppendFormat(&text, ", %d cut to fit the context", data.truncated());
      absl::StrAppend(&text, "); ");
      if (!examples) absl::StrAppend(&text, ShortCount(data.train_bytes()), " bytes = ");
      absl::StrAppend(&text, ShortCount(data.train_tokens()), " tokens to train on");
      if (data.scored_tokens() > 0) {
        absl::StrAppend(&text, ", of which ", ShortCount(data.scored_tokens()), " are learnt");
      }
      absl::StrAppend(&text, ", ");
      if (!examples) absl::StrAppend(&text, ShortCount(data.held_out_bytes()), " bytes = ");
      absl::StrAppendFormat(&text, "%s tokens held out; vocabulary of %d", ShortCount(data.held_out_tokens()),
                            data.vocab_size());
      line_->Print(text);
      for (const std::string& skip : data.skips()) line_->Print(absl::StrCat("  skipped ", skip));
      break;
    }
    case v1::JobEvent::kStep: {
      const v1::StepEvent& step = event.step();
      std::string text =
          absl::StrFormat("%s %d/%d  loss %.4f", step.phase(), step.step(), step.max_steps(), step.loss());
      if (held_out_ > 0) absl::StrAppendFormat(&text, "  held-out %.4f", held_out_);
      absl::StrAppendFormat(&text, "  %s tokens/s  %d worker%s  ETA %s", ShortCount(step.tokens_per_second()),
                            step.workers(), step.workers() == 1 ? "" : "s", ShortDuration(step.eta_seconds()));
      line_->Show(text);
      break;
    }
    case v1::JobEvent::kEvaluation: {
      const v1::EvaluationEvent& evaluation = event.evaluation();
      held_out_ = evaluation.loss();
      std::string text =
          absl::StrFormat("%s step %d: held-out loss %.4f", evaluation.phase(), evaluation.step(), evaluation.loss());
      if (evaluation.bytes() > 0) {
        absl::StrAppendFormat(&text, ", perplexity %.2f, %.4f bits a byte", evaluation.perplexity(),
                              evaluation.bits_per_byte());
      }
      // A map of protobuf has no order.
      const std::map<std::string, double> statistics(evaluation.statistics().begin(), evaluation.statistics().end());
      for (const auto& [name, value] : statistics) {
        if (absl::StrContains(name, "_at_")) continue;  // curves are for --json
        absl::StrAppendFormat(&text, ", %s %.4f", absl::StrReplaceAll(name, {{"_", " "}}), value);
      }
      line_->Print(absl::StrCat(text, evaluation.best() ? " (best)" : ""));
      break;
    }
    case v1::JobEvent::kSamples: {
      for (const v1::Sample& sample : event.samples().samples()) {
        line_->Print(absl::StrCat("  ", text::QuotedText(sample.prompt()), " → ", text::QuotedText(sample.text()),
                                  sample.ended() ? "" : " …"));
      }
      break;
    }
    case v1::JobEvent::kCheckpoint:
      line_->Print(absl::StrFormat("%s step %d: checkpoint%s", event.checkpoint().phase(), event.checkpoint().step(),
                                   event.checkpoint().best() ? " (best)" : ""));
      break;
    case v1::JobEvent::kLog:
      line_->Print(event.log().severity() == "info" ? event.log().text()
                                                    : absl::StrCat(event.log().severity(), ": ", event.log().text()));
      break;
    case v1::JobEvent::EVENT_NOT_SET:
      break;
  }
}

// Whether the loss of the job's present phase is that of predicting text.
static bool PredictsText(const v1::Job& job) {
  for (const v1::PhaseSpec& phase : job.spec().phases()) {
    if (phase.name() == job.phase()) return TraitsOf(phase.objective()).predicts_text;
  }
  return true;
}

std::string Summary(const v1::Job& job) {
  std::string text =
      absl::StrCat("Job ", job.id(), " ", job.state() == v1::Job::SUCCEEDED ? "is finished" : StateName(job.state()),
                   " after ", job.step(), " of ", job.max_steps(), " steps");
  if (!job.stop_reason().empty()) absl::StrAppend(&text, " (", job.stop_reason(), ")");
  if (job.started_unix_ms() > 0 && job.ended_unix_ms() >= job.started_unix_ms()) {
    absl::StrAppend(&text, ", ", ShortDuration(static_cast<double>(job.ended_unix_ms() - job.started_unix_ms()) / 1000),
                    " after its start");
  }
  absl::StrAppend(&text, ".\n");
  if (!job.error().empty()) absl::StrAppend(&text, "  ", job.error(), "\n");
  if (job.best_step() > 0) {
    absl::StrAppendFormat(&text, "  best held-out loss  %.4f", job.best_held_out_loss());
    if (PredictsText(job)) {
      absl::StrAppendFormat(&text, " nats a token (perplexity %.2f)", std::exp(job.best_held_out_loss()));
    }
    absl::StrAppend(&text, ", at step ", job.best_step(), "\n");
    if (job.held_out_loss() != job.best_held_out_loss()) {
      absl::StrAppendFormat(&text, "  last held-out loss  %.4f\n", job.held_out_loss());
    }
  }
  return text;
}

std::string NextCommands(const std::string& program, const std::string& family, const std::string& checkpoint) {
  const std::string first = family == "bert" ? absl::StrCat(" embed --model ", checkpoint, " --text \"The \"")
                                             : absl::StrCat(" generate --model ", checkpoint, " --prompt \"The \"");
  return absl::StrCat("Try:\n  ", program, first, "\n  ", program, " score --model ", checkpoint,
                      " --text \"Today is a sunny day.\"\n  ", program, " export --model ", checkpoint,
                      " --format hf --out hugging-face\n");
}

}  // namespace millrace::cli
