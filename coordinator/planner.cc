#include "coordinator/planner.h"

#include <cstring>
#include <utility>

#include "common/status.h"
#include "text/batches.h"
#include "text/token_store.h"

namespace millrace::coordinator {

// x86-64 is little-endian: tokens travel as they lie in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

struct Planner::Impl {
  text::Batches batches;
  uint32_t unit_microbatches;
  // Evaluated alike each time.
  std::vector<v1::WorkUnit> evaluation;
};

namespace {

void Fill(const text::TokenBatch& batch, uint32_t index, v1::Microbatch* microbatch) {
  microbatch->set_index(index);
  microbatch->set_rows(batch.rows);
  microbatch->set_columns(batch.columns);
  microbatch->set_tokens(batch.tokens.data(), batch.tokens.size() * sizeof(uint32_t));
}

}  // namespace

Planner::Planner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Planner::~Planner() = default;

absl::StatusOr<std::unique_ptr<Planner>> Planner::Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const std::string& data_directory) {
  MILLRACE_ASSIGN_OR_RETURN(std::shared_ptr<const text::TokenStore> store, text::TokenStore::Open(data_directory));
  const v1::PhaseSpec& phase = job.phases(static_cast<int>(phase_index));
  text::BatchOptions options;
  options.seed = job.seed();
  options.phase = phase_index;
  options.context = job.model().context();
  options.global_batch = phase.global_batch();
  options.microbatch = phase.microbatch();
  options.max_evaluation_tokens = phase.evaluate().max_tokens();
  MILLRACE_ASSIGN_OR_RETURN(text::Batches batches, text::Batches::Create(std::move(store), options));
  auto impl = std::make_unique<Impl>(Impl{std::move(batches), phase.unit_microbatches(), {}});
  // Evaluation microbatches are many and cheap: a unit takes several, so that it is worth its way.
  constexpr uint64_t kEvaluationMicrobatches = 4;
  for (uint64_t index = 0; index < impl->batches.evaluation_microbatches(); ++index) {
    if (index % kEvaluationMicrobatches == 0) {
      v1::WorkUnit& unit = impl->evaluation.emplace_back();
      unit.set_kind(v1::WorkUnit::EVALUATE);
      unit.set_unit(static_cast<uint32_t>(impl->evaluation.size() - 1));
      unit.set_loss_denominator(static_cast<double>(impl->batches.evaluation_predictions()));
    }
    Fill(impl->batches.Evaluation(index), static_cast<uint32_t>(index), impl->evaluation.back().add_microbatches());
  }
  return std::unique_ptr<Planner>(new Planner(std::move(impl)));
}

std::vector<v1::WorkUnit> Planner::Training(uint64_t epoch, uint64_t version) {
  std::vector<v1::WorkUnit> units(training_units());
  for (uint32_t index = 0; index < impl_->batches.training_microbatches(); ++index) {
    v1::WorkUnit& unit = units[index / impl_->unit_microbatches];
    Fill(impl_->batches.Training(version, index), index, unit.add_microbatches());
  }
  for (uint32_t i = 0; i < units.size(); ++i) {
    units[i].set_kind(v1::WorkUnit::TRAIN);
    units[i].set_epoch(epoch);
    units[i].set_version(version);
    units[i].set_unit(i);
    units[i].set_loss_denominator(static_cast<double>(training_predictions()));
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

uint32_t Planner::training_units() const { return impl_->batches.training_microbatches() / impl_->unit_microbatches; }
uint64_t Planner::training_predictions() const { return impl_->batches.training_predictions(); }
uint64_t Planner::evaluation_predictions() const { return impl_->batches.evaluation_predictions(); }
uint64_t Planner::evaluation_bytes() const { return impl_->batches.evaluation_bytes(); }
uint32_t Planner::vocab_size() const { return impl_->batches.store().vocab_size(); }
const std::string& Planner::data_fingerprint() const { return impl_->batches.store().fingerprint(); }

}  // namespace millrace::coordinator
