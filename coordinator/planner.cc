#include "coordinator/planner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/job_file.h"
#include "common/philox.h"
#include "common/status.h"
#include "text/batches.h"
#include "text/example_batches.h"
#include "text/example_store.h"
#include "text/hidden_tokens.h"
#include "text/pair_batches.h"
#include "text/token_store.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace millrace::coordinator {

// x86-64 is little-endian: tokens travel as they lie in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

namespace {

// Evaluation microbatches are many and cheap: a unit takes several, so that it is worth its way.
constexpr uint64_t kEvaluationMicrobatches = 4;
// Answers that a unit asks for, about: they are extended together.
constexpr uint32_t kAnswersOfUnit = 32;

void Fill(const text::TokenBatch& batch, uint32_t index, v1::Microbatch* microbatch) {
  microbatch->set_index(index);
  microbatch->set_rows(batch.rows);
  microbatch->set_columns(batch.columns);
  microbatch->set_tokens(batch.tokens.data(), batch.tokens.size() * sizeof(uint32_t));
  microbatch->set_scored(batch.scored.data(), batch.scored.size());
  microbatch->set_starts(batch.starts.data(), batch.starts.size() * sizeof(uint32_t));
  microbatch->set_row_values(batch.row_values.data(), batch.row_values.size() * sizeof(float));
}

// What a loss is a mean over.
enum class Counting { kTokens, kPairs, kRows };

Counting CountingOf(const std::string& objective) {
  if (TraitsOf(objective).hides) return Counting::kRows;
  const std::optional<text::ExampleKind> kind = ExamplesOf(objective);
  if (kind == text::ExampleKind::kPairs) return Counting::kPairs;
  return kind == text::ExampleKind::kLabelled ? Counting::kRows : Counting::kTokens;
}

// Appends the units that evaluate on `source`, and returns what their loss is a mean over.
uint64_t AddEvaluation(const text::BatchSource& source, const std::string& objective,
                       std::vector<v1::WorkUnit>* units) {
  const size_t first = units->size();
  const Counting counting = CountingOf(objective);
  uint64_t rows = 0;
  for (uint64_t index = 0; index < source.evaluation_microbatches(); ++index) {
    if (index % kEvaluationMicrobatches == 0) {
      v1::WorkUnit& unit = units->emplace_back();
      unit.set_kind(v1::WorkUnit::EVALUATE);
      unit.set_unit(static_cast<uint32_t>(units->size() - 1));
      unit.set_objective(objective);
    }
    v1::Microbatch* const microbatch = units->back().add_microbatches();
    Fill(source.Evaluation(index), static_cast<uint32_t>(index), microbatch);
    rows += microbatch->rows();
  }
  const uint64_t count = counting == Counting::kTokens  ? source.evaluation_predictions()
                         : counting == Counting::kPairs ? rows / 2
                                                        : rows;
  for (size_t i = first; i < units->size(); ++i) (*units)[i].set_loss_denominator(static_cast<double>(count));
  return count;
}

void Fill(text::PromptOrder::Prompt from, uint64_t index, v1::Prompt* prompt) {
  prompt->set_index(index);
  prompt->set_tokens(from.ids.data(), from.ids.size() * sizeof(uint32_t));
  prompt->set_answer(std::move(from.answer));
}

text::BatchOptions OptionsOf(const v1::JobSpec& job, uint32_t phase_index) {
  const v1::PhaseSpec& phase = job.phases(static_cast<int>(phase_index));
  text::BatchOptions options;
  options.seed = job.seed();
  options.phase = phase_index;
  options.context = TextContext(job.model(), phase);
  options.global_batch = phase.global_batch();
  options.microbatch = phase.microbatch();
  options.max_evaluation_tokens = phase.evaluate().max_tokens();
  return options;
}

using Text = std::shared_ptr<const text::TokenStore>;

absl::StatusOr<std::unique_ptr<text::BatchSource>> BatchesOf(Text store, const v1::PhaseSpec& phase,
                                                             const text::BatchOptions& options) {
  if (TraitsOf(phase.objective()).hides) {
    return text::PairBatches::Create(std::move(store), options, phase.mask().next_sentence());
  }
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

struct Planner::Impl {
  v1::PhaseSpec phase;
  std::unique_ptr<text::BatchSource> source;    // null: the phase samples
  std::unique_ptr<text::BatchSource> retained;  // null: the source is the job's text, or the model no language model
  // Evaluated alike each time.
  std::vector<v1::WorkUnit> evaluation;
  std::map<std::string, uint32_t> special_tokens;  // of one that hides tokens
  uint32_t evaluation_units = 0;
  uint64_t evaluation_predictions = 0;
  uint64_t retained_predictions = 0;

  // Of a phase that samples.
  std::shared_ptr<const text::ExampleStore> store;
  std::optional<text::PromptOrder> prompts;
  std::string tokenizer_json;
  Philox order{0};  // of experiences
  uint64_t steps_of_rollout = 1;
  std::optional<uint64_t> rollout;  // the version whose answers are here
  std::vector<v1::Experience> experiences;
  std::map<std::string, double> statistics;

  void OpenPrompts(text::PromptOrder opened, uint64_t seed, uint32_t phase_index);
  uint32_t PromptsOfUnit(uint32_t samples) const { return std::max(1u, kAnswersOfUnit / samples); }
  // Experiences of the step after `version`, by index.
  std::vector<size_t> ExperiencesOf(uint64_t version) const;
  uint64_t TokensOf(uint64_t version) const;
};

Planner::Planner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Planner::~Planner() = default;

absl::StatusOr<std::unique_ptr<Planner>> Planner::Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const DataFolders& folders) {
  const v1::PhaseSpec& phase = job.phases(static_cast<int>(phase_index));
  const text::BatchOptions options = OptionsOf(job, phase_index);
  auto impl = std::make_unique<Impl>();
  impl->phase = phase;
  const ObjectiveTraits traits = TraitsOf(phase.objective());
  Text text;
  if (job.has_data()) {
    MILLRACE_ASSIGN_OR_RETURN(text, text::TokenStore::Open(folders.job));
  }
  if (traits.samples) {
    MILLRACE_ASSIGN_OR_RETURN(impl->store, text::ExampleStore::Open(folders.phase));
    MILLRACE_ASSIGN_OR_RETURN(text::PromptOrder prompts,
                              text::PromptOrder::Create(impl->store, job.seed(), phase_index));
    impl->OpenPrompts(std::move(prompts), job.seed(), phase_index);
  } else {
    if (folders.phase.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(impl->source, BatchesOf(std::move(text), phase, options));
    } else if (ExamplesOf(phase.objective()).has_value()) {
      MILLRACE_ASSIGN_OR_RETURN(impl->source, OpenExamples(phase, folders.phase, text, options));
    } else {
      MILLRACE_ASSIGN_OR_RETURN(Text own, text::TokenStore::Open(folders.phase));
      MILLRACE_ASSIGN_OR_RETURN(impl->source, BatchesOf(std::move(own), phase, options));
    }
    impl->evaluation_predictions = AddEvaluation(*impl->source, phase.objective(), &impl->evaluation);
  }
  impl->evaluation_units = static_cast<uint32_t>(impl->evaluation.size());
  if (traits.hides) {
    // That of the job's text is that of the phase's.
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                              text::LoadTokenizer(folders.phase.empty() ? folders.job : folders.phase));
    impl->special_tokens = text::SpecialTokensOf(*tokenizer);
  }
  if (text != nullptr && !folders.phase.empty() && traits.learns && !traits.trains_rewards) {
    MILLRACE_ASSIGN_OR_RETURN(impl->retained, BatchesOf(std::move(text), phase, options));
    impl->retained_predictions =
        AddEvaluation(*impl->retained, traits.hides ? phase.objective() : "causal_lm", &impl->evaluation);
  }
  return std::unique_ptr<Planner>(new Planner(std::move(impl)));
}

void Planner::Impl::OpenPrompts(text::PromptOrder opened, uint64_t seed, uint32_t phase_index) {
  prompts.emplace(std::move(opened));
  tokenizer_json = store->tokenizer().ToJson();
  order = text::DataKey("experiences", store->fingerprint(), seed, phase_index);
  steps_of_rollout = StepsOfRollout(phase);
  uint64_t count = prompts->evaluation_prompts();
  if (phase.rollout().evaluation_prompts() > 0) count = std::min<uint64_t>(count, phase.rollout().evaluation_prompts());
  evaluation_predictions = count;
  for (uint64_t index = 0; index < count; ++index) {
    if (index % PromptsOfUnit(/*samples=*/1) == 0) {
      v1::WorkUnit& unit = evaluation.emplace_back();
      unit.set_kind(v1::WorkUnit::EVALUATE);
      unit.set_unit(static_cast<uint32_t>(evaluation.size() - 1));
      unit.set_objective(phase.objective());
      unit.set_loss_denominator(static_cast<double>(count));
      unit.add_microbatches()->set_index(unit.unit());
    }
    Fill(prompts->Evaluation(index), index, evaluation.back().mutable_microbatches(0)->add_prompts());
  }
}

bool Planner::samples() const { return impl_->prompts.has_value(); }
bool Planner::RolloutDue(uint64_t version) const {
  return samples() && version % impl_->steps_of_rollout == 0 && impl_->rollout != version;
}

std::vector<v1::WorkUnit> Planner::Rollout(uint64_t epoch, uint64_t version,
                                           const std::map<std::string, double>& variables) const {
  const v1::RolloutSpec& spec = impl_->phase.rollout();
  const uint32_t of_unit = impl_->PromptsOfUnit(spec.samples());
  std::vector<v1::WorkUnit> units(rollout_units());
  for (uint32_t i = 0; i < spec.prompts(); ++i) {
    v1::WorkUnit& unit = units[i / of_unit];
    if (unit.microbatches().empty()) unit.add_microbatches()->set_index(i / of_unit);
    const uint64_t index = version / impl_->steps_of_rollout * spec.prompts() + i;
    Fill(impl_->prompts->Training(index), index, unit.mutable_microbatches(0)->add_prompts());
  }
  for (uint32_t i = 0; i < units.size(); ++i) {
    units[i].set_kind(v1::WorkUnit::ROLLOUT);
    units[i].set_epoch(epoch);
    units[i].set_version(version);
    units[i].set_unit(i);
    units[i].set_loss_denominator(spec.prompts());
    units[i].mutable_statistics()->insert(variables.begin(), variables.end());
  }
  return units;
}

absl::Status Planner::TakeRollout(uint64_t version, absl::Span<v1::WorkResult> results,
                                  const std::map<std::string, double>& statistics) {
  const uint64_t wanted = uint64_t{impl_->phase.rollout().prompts()} * impl_->phase.rollout().samples();
  std::vector<v1::Experience> experiences;
  for (v1::WorkResult& result : results) {
    for (v1::Experience& experience : *result.mutable_experiences()) {
      if (experience.log_probabilities().empty()) {
        return absl::InternalError(absl::StrCat("rollout at step ", version, ": an answer without tokens"));
      }
      experiences.push_back(std::move(experience));
    }
  }
  if (experiences.size() != wanted) {
    return absl::InternalError(absl::StrCat("rollout at step ", version, ": workers report ", experiences.size(),
                                            " answers where ", wanted, " were asked for"));
  }
  impl_->experiences = std::move(experiences);
  impl_->statistics = statistics;
  impl_->rollout = version;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Planner::ComparedPair>> Planner::Compared(absl::Span<const v1::WorkResult> results) const {
  std::vector<std::string> answers;
  for (const v1::WorkResult& result : results) {
    for (const v1::Experience& experience : result.experiences()) {
      const size_t all = experience.tokens().size() / sizeof(uint32_t);
      if (experience.prompt_tokens() >= all) return absl::InternalError("an answer without tokens");
      std::vector<uint32_t> ids(all - experience.prompt_tokens());
      std::memcpy(ids.data(), experience.tokens().data() + size_t{experience.prompt_tokens()} * sizeof(uint32_t),
                  ids.size() * sizeof(uint32_t));
      if (ids.back() == impl_->store->end_of_turn()) ids.pop_back();
      // White space around the answer is the template's.
      answers.emplace_back(absl::StripAsciiWhitespace(text::WellFormed(impl_->store->tokenizer().Decode(ids))));
    }
  }
  const uint32_t prompts = impl_->phase.rollout().prompts();
  if (answers.size() != size_t{2} * prompts) {
    return absl::InternalError(
        absl::StrCat("workers report ", answers.size(), " answers where ", 2 * prompts, " were asked for"));
  }
  std::vector<ComparedPair> pairs;
  for (uint32_t i = 0; i < prompts; ++i) {
    pairs.push_back({impl_->prompts->Training(i).messages,
                     {std::move(answers[2 * size_t{i}]), std::move(answers[2 * size_t{i} + 1])}});
  }
  return pairs;
}

void Planner::ForgetRollout() { impl_->rollout.reset(); }

std::vector<size_t> Planner::Impl::ExperiencesOf(uint64_t version) const {
  const uint64_t all = experiences.size(), batch = phase.global_batch();
  const uint64_t first = version % steps_of_rollout * batch;
  std::vector<size_t> indices;
  for (uint64_t at = first; at < first + batch; ++at) {
    const text::Permutation permutation(all, order.Derive(version / steps_of_rollout).Derive(at / all));
    indices.push_back(permutation(at % all));
  }
  return indices;
}

uint64_t Planner::Impl::TokensOf(uint64_t version) const {
  uint64_t tokens = 0;
  for (const size_t index : ExperiencesOf(version)) {
    tokens += static_cast<uint64_t>(experiences[index].log_probabilities_size());
  }
  return tokens;
}

std::vector<v1::WorkUnit> Planner::Training(uint64_t epoch, uint64_t version) const {
  const v1::PhaseSpec& phase = impl_->phase;
  std::vector<v1::WorkUnit> units(training_units());
  const uint32_t microbatches = phase.global_batch() / phase.microbatch();
  const std::vector<size_t> experiences = samples() ? impl_->ExperiencesOf(version) : std::vector<size_t>();
  for (uint32_t index = 0; index < microbatches; ++index) {
    v1::Microbatch* const microbatch = units[index / phase.unit_microbatches()].add_microbatches();
    if (!samples()) {
      Fill(impl_->source->Training(version, index), index, microbatch);
      continue;
    }
    microbatch->set_index(index);
    for (uint32_t row = 0; row < phase.microbatch(); ++row) {
      *microbatch->add_experiences() = impl_->experiences[experiences[index * phase.microbatch() + row]];
    }
  }
  auto denominator = static_cast<double>(training_predictions(version));
  if (samples() && phase.policy().average() == "answers" && phase.objective() != "rloo") {
    denominator = static_cast<double>(uint64_t{phase.global_batch()} * phase.rollout().max_tokens());
  }
  for (uint32_t i = 0; i < units.size(); ++i) {
    units[i].set_kind(v1::WorkUnit::TRAIN);
    units[i].set_epoch(epoch);
    units[i].set_version(version);
    units[i].set_unit(i);
    units[i].set_loss_denominator(denominator);
    if (samples()) units[i].mutable_statistics()->insert(impl_->statistics.begin(), impl_->statistics.end());
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

uint32_t Planner::training_units() const {
  return impl_->phase.global_batch() / impl_->phase.microbatch() / impl_->phase.unit_microbatches();
}
uint32_t Planner::evaluation_units() const { return impl_->evaluation_units; }
uint32_t Planner::rollout_units() const {
  const v1::RolloutSpec& spec = impl_->phase.rollout();
  const uint32_t of_unit = impl_->PromptsOfUnit(spec.samples());
  return (spec.prompts() + of_unit - 1) / of_unit;
}
uint64_t Planner::training_tokens(uint64_t version) const {
  return samples() ? impl_->TokensOf(version) : impl_->source->training_predictions(version);
}
uint64_t Planner::training_predictions(uint64_t version) const {
  const std::string& objective = impl_->phase.objective();
  const bool of_tokens = samples() ? objective != "rloo" : CountingOf(objective) == Counting::kTokens;
  return of_tokens ? training_tokens(version) : impl_->phase.global_batch();
}
uint64_t Planner::evaluation_predictions() const { return impl_->evaluation_predictions; }
uint64_t Planner::retained_predictions() const { return impl_->retained_predictions; }
uint64_t Planner::StepsOf(double epochs) const {
  if (!samples()) return impl_->source->StepsOf(epochs);
  const double rollouts =
      std::ceil(epochs * static_cast<double>(impl_->prompts->training_prompts()) / impl_->phase.rollout().prompts());
  return static_cast<uint64_t>(std::max(1.0, rollouts)) * impl_->steps_of_rollout;
}
uint64_t Planner::evaluation_bytes() const {
  return TraitsOf(impl_->phase.objective()).predicts_text ? impl_->source->evaluation_bytes() : 0;
}
uint32_t Planner::vocab_size() const { return samples() ? impl_->store->vocab_size() : impl_->source->vocab_size(); }
const std::string& Planner::tokenizer_json() const { return impl_->tokenizer_json; }
uint32_t Planner::end_of_turn() const { return samples() ? impl_->store->end_of_turn() : 0; }
const std::map<std::string, uint32_t>& Planner::special_tokens() const { return impl_->special_tokens; }
const std::string& Planner::data_fingerprint() const {
  return samples() ? impl_->store->fingerprint() : impl_->source->fingerprint();
}

}  // namespace millrace::coordinator
