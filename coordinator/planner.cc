#include "coordinator/planner.h"

#include <cstring>
#include <utility>

#include "common/status.h"
#include "text/batches.h"
#include "text/example_batches.h"
#include "text/example_store.h"
#include "text/token_store.h"

namespace millrace::coordinator {

// x86-64 is little-endian: tokens travel as they lie in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

namespace {

// Evaluation microbatches are many and cheap: a unit takes several, so that it is worth its way.
constexpr uint64_t kEvaluationMicrobatches = 4;

void Fill(const text::TokenBatch& batch, uint32_t index, v1::Microbatch* microbatch) {
  microbatch->set_index(index);
  microbatch->set_rows(batch.rows);
  microbatch->set_columns(batch.columns);
  microbatch->set_tokens(batch.tokens.data(), batch.tokens.size() * sizeof(uint32_t));
  microbatch->set_scored(batch.scored.data(), batch.scored.size());
  microbatch->set_starts(batch.starts.data(), batch.starts.size() * sizeof(uint32_t));
  microbatch->set_row_values(batch.row_values.data(), batch.row_values.size() * sizeof(float));
}

// Appends the units that evaluate on `source`.
void AddEvaluation(const text::BatchSource& source, const std::string& objective, std::vector<v1::WorkUnit>* units) {
  for (uint64_t index = 0; index < source.evaluation_microbatches(); ++index) {
    if (index % kEvaluationMicrobatches == 0) {
      v1::WorkUnit& unit = units->emplace_back();
      unit.set_kind(v1::WorkUnit::EVALUATE);
      unit.set_unit(static_cast<uint32_t>(units->size() - 1));
      unit.set_loss_denominator(static_cast<double>(source.evaluation_predictions()));
      unit.set_objective(objective);
    }
    Fill(source.Evaluation(index), static_cast<uint32_t>(index), units->back().add_microbatches());
  }
}

text::BatchOptions OptionsOf(const v1::JobSpec& job, uint32_t phase_index) {
  const v1::PhaseSpec& phase = job.phases(static_cast<int>(phase_index));
  text::BatchOptions options;
  options.seed = job.seed();
  options.phase = phase_index;
  options.context = job.model().context();
  options.global_batch = phase.global_batch();
  options.microbatch = phase.microbatch();
  options.max_evaluation_tokens = phase.evaluate().max_tokens();
  return options;
}

using Text = std::shared_ptr<const text::TokenStore>;

absl::StatusOr<std::unique_ptr<text::BatchSource>> BatchesOf(Text store, const text::BatchOptions& options) {
  MILLRACE_ASSIGN_OR_RETURN(text::Batches batches, text::Batches::Create(std::move(store), options));
  return std::make_unique<text::Batches>(std::move(batches));
}

// The examples in `folder`, and of the job's text as much as the phase replays.
absl::StatusOr<std::unique_ptr<text::BatchSource>> OpenExamples(const v1::PhaseSpec& phase, const std::string& folder,
                                                                const Text& job_text,
                                                                const text::BatchOptions& text_options) {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const text::ExampleStore> store, text::ExampleStore::Open(folder));
  text::ExampleBatchOptions options;
  options.seed = text_options.seed;
  options.phase = text_options.phase;
  options.context = text_options.context;
  options.global_batch = text_options.global_batch;
  options.microbatch = text_options.microbatch;
  options.packing = phase.chat().packing();
  options.max_evaluation_tokens = text_options.max_evaluation_tokens;
  options.replay = phase.replay();
  return text::ExampleBatches::Create(std::move(store), options, phase.replay() > 0 ? job_text : nullptr);
}

}  // namespace

std::optional<text::ExampleKind> ExamplesOf(const std::string& objective) {
  if (objective == "sft") return text::ExampleKind::kSft;
  return std::nullopt;
}

struct Planner::Impl {
  std::unique_ptr<text::BatchSource> source;
  std::unique_ptr<text::BatchSource> retained;  // null: the source is the job's text
  uint32_t unit_microbatches = 1;
  // Evaluated alike each time.
  std::vector<v1::WorkUnit> evaluation;
  uint32_t evaluation_units = 0;
};

Planner::Planner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Planner::~Planner() = default;

absl::StatusOr<std::unique_ptr<Planner>> Planner::Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const DataFolders& folders) {
  const v1::PhaseSpec& phase = job.phases(static_cast<int>(phase_index));
  const text::BatchOptions options = OptionsOf(job, phase_index);
  auto impl = std::make_unique<Impl>();
  impl->unit_microbatches = phase.unit_microbatches();
  MILLRACE_ASSIGN_OR_RETURN(Text text, text::TokenStore::Open(folders.job));
  if (folders.phase.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(impl->source, BatchesOf(std::move(text), options));
  } else if (ExamplesOf(phase.objective()).has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(impl->source, OpenExamples(phase, folders.phase, text, options));
  } else {
    MILLRACE_ASSIGN_OR_RETURN(Text own, text::TokenStore::Open(folders.phase));
    MILLRACE_ASSIGN_OR_RETURN(impl->source, BatchesOf(std::move(own), options));
  }
  AddEvaluation(*impl->source, phase.objective(), &impl->evaluation);
  impl->evaluation_units = static_cast<uint32_t>(impl->evaluation.size());
  if (!folders.phase.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(impl->retained, BatchesOf(std::move(text), options));
    AddEvaluation(*impl->retained, "causal_lm", &impl->evaluation);
  }
  return std::unique_ptr<Planner>(new Planner(std::move(impl)));
}

std::vector<v1::WorkUnit> Planner::Training(uint64_t epoch, uint64_t version) {
  std::vector<v1::WorkUnit> units(training_units());
  for (uint32_t index = 0; index < impl_->source->training_microbatches(); ++index) {
    v1::WorkUnit& unit = units[index / impl_->unit_microbatches];
    Fill(impl_->source->Training(version, index), index, unit.add_microbatches());
  }
  const auto predictions = static_cast<double>(training_predictions(version));
  for (uint32_t i = 0; i < units.size(); ++i) {
    units[i].set_kind(v1::WorkUnit::TRAIN);
    units[i].set_epoch(epoch);
    units[i].set_version(version);
    units[i].set_unit(i);
    units[i].set_loss_denominator(predictions);
  }
  return units;
}

std::vector<v1::WorkUnit> Planner::Evaluation(uint64_t epoch, uint64_t version) const {
  std::vector<v1::WorkUnit> units = impl_->evaluation;
  for (v1::WorkUnit& unit : units) {
    unit.set_epoch(epoch);
    unit.set_version(version);
  }
  return units;
}

uint32_t Planner::training_units() const { return impl_->source->training_microbatches() / impl_->unit_microbatches; }
uint32_t Planner::evaluation_units() const { return impl_->evaluation_units; }
uint64_t Planner::training_predictions(uint64_t version) const { return impl_->source->training_predictions(version); }
uint64_t Planner::evaluation_predictions() const { return impl_->source->evaluation_predictions(); }
uint64_t Planner::retained_predictions() const {
  return impl_->retained == nullptr ? 0 : impl_->retained->evaluation_predictions();
}
uint64_t Planner::StepsOf(double epochs) const { return impl_->source->StepsOf(epochs); }
uint64_t Planner::evaluation_bytes() const { return impl_->source->evaluation_bytes(); }
uint32_t Planner::vocab_size() const { return impl_->source->vocab_size(); }
const std::string& Planner::data_fingerprint() const { return impl_->source->fingerprint(); }

}  // namespace millrace::coordinator
