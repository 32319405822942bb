#include "worker/phase.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/arena.h"
#include "model/families/decoder.h"
#include "model/formats/config_json.h"
#include "model/objectives/causal_lm.h"
#include "worker/parameters.h"
#include "worker/phase_models.h"

namespace millrace::worker {
namespace {

constexpr uint64_t kDropoutPurpose = 0x44524F50;          // "DROP"
constexpr uint64_t kMaxMicrobatches = uint64_t{1} << 20;  // of a step
// Tokens of a microbatch: bounds what a unit makes the worker allocate.
constexpr uint64_t kMaxTokens = uint64_t{1} << 24;

// Checks what decides how much memory the batch takes.
absl::StatusOr<model::Batch> BatchOf(const v1::Microbatch& microbatch, uint32_t context) {
  const uint64_t count = uint64_t{microbatch.rows()} * microbatch.columns();
  if (microbatch.index() >= kMaxMicrobatches) {
    return absl::InvalidArgumentError(
        absl::StrCat("microbatch ", microbatch.index(), " is beyond the ", kMaxMicrobatches, " of a step"));
  }
  if (microbatch.columns() > uint64_t{context} + 1) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": sequences of ",
                                                   microbatch.columns(), " tokens where the model's context is ",
                                                   context));
  }
  if (count == 0 || count > kMaxTokens || microbatch.tokens().size() != count * sizeof(uint32_t)) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", microbatch.tokens().size(),
                                                   " bytes where ", microbatch.rows(), " x ", microbatch.columns(),
                                                   " tokens have ", count * sizeof(uint32_t)));
  }
  const auto wrong = [&](absl::string_view what, uint64_t bytes, uint64_t wanted) {
    return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": ", bytes, " bytes of ", what,
                                                   " where ", microbatch.rows(), " x ", microbatch.columns(),
                                                   " tokens have ", wanted));
  };
  model::Batch batch;
  // Bytes of a protobuf are allocated on their own, hence aligned.
  batch.ids = reinterpret_cast<const uint32_t*>(microbatch.tokens().data());
  if (!microbatch.scored().empty()) {
    if (microbatch.scored().size() != count) return wrong("scored", microbatch.scored().size(), count);
    batch.scored = reinterpret_cast<const uint8_t*>(microbatch.scored().data());
  }
  if (!microbatch.starts().empty()) {
    if (microbatch.starts().size() != count * sizeof(uint32_t)) {
      return wrong("starts", microbatch.starts().size(), count * sizeof(uint32_t));
    }
    batch.starts = reinterpret_cast<const uint32_t*>(microbatch.starts().data());
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t column = i % microbatch.columns();
      if (batch.starts[i] == column || (column > 0 && batch.starts[i] == batch.starts[i - 1])) continue;
      return absl::InvalidArgumentError(absl::StrCat("microbatch ", microbatch.index(), ": a token of column ", column,
                                                     " cannot be of a sequence that begins in column ",
                                                     batch.starts[i]));
    }
  }
  batch.rows = microbatch.rows();
  batch.columns = microbatch.columns();
  batch.first_scored = microbatch.first_scored_column();
  return batch;
}

}  // namespace

// An architecture and the memory of its passes.
class PhaseSeat::Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Create(const kernels::Compute* compute,
                                                       const v1::PhaseContext& context) {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<model::Decoder> decoder,
                              model::Decoder::Create(context.model(), context.vocab_size()));
    return std::unique_ptr<Model>(new Model(compute, context, std::move(decoder)));
  }

  bool Fits(const v1::PhaseContext& context) const {
    return context.model().SerializeAsString() == key_ && context.vocab_size() == decoder_->vocab_size();
  }

  const model::Decoder& decoder() const { return *decoder_; }
  // Laid out as the decoder's tensors; made on first use. RESOURCE_EXHAUSTED if there is no memory for them.
  absl::StatusOr<float*> Weights() { return Memory("the model's weights", &weights_memory_, &weights_); }
  absl::StatusOr<float*> Gradients() { return Memory("the model's gradients", &gradients_memory_, &gradients_); }

  // For batches as large as this one, and those before. RESOURCE_EXHAUSTED if there is no memory for them.
  absl::StatusOr<model::CausalLm*> ForBatch(const model::Batch& batch, bool for_training) {
    const int64_t tokens = batch.rows * (batch.columns - 1), columns = batch.columns - 1;
    if (training_.objective.has_value() && tokens <= training_.tokens && columns <= training_.columns) {
      return &*training_.objective;
    }
    Sized& sized = for_training ? training_ : evaluation_;
    if (!sized.objective.has_value() || tokens > sized.tokens || columns > sized.columns) {
      sized.tokens = std::max(tokens, sized.tokens);
      sized.columns = std::max(columns, sized.columns);
      sized.objective.reset();
      absl::StatusOr<model::CausalLm> objective =
          model::CausalLm::Create(decoder_.get(), compute_, sized.tokens, sized.columns, for_training);
      if (!objective.ok()) {
        return Annotate(objective.status(), absl::StrCat("a pass over ", batch.rows, " sequences of ", columns,
                                                         " tokens (a smaller phases.microbatch needs less)"));
      }
      sized.objective.emplace(*std::move(objective));
    }
    return &*sized.objective;
  }

 private:
  struct Sized {
    int64_t tokens = 0;
    int64_t columns = 0;
    std::optional<model::CausalLm> objective;
  };

  Model(const kernels::Compute* compute, const v1::PhaseContext& context, std::unique_ptr<model::Decoder> decoder)
      : compute_(compute), key_(context.model().SerializeAsString()), decoder_(std::move(decoder)) {}

  absl::StatusOr<float*> Memory(absl::string_view what, model::Arena* arena, float** memory) const {
    if (*memory == nullptr) {
      absl::StatusOr<model::Arena> made = model::Arena::Create(decoder_->tensors().floats());
      if (!made.ok()) return Annotate(made.status(), what);
      *arena = *std::move(made);
      *memory = arena->Take(decoder_->tensors().floats());
    }
    return *memory;
  }

  const kernels::Compute* const compute_;
  const std::string key_;
  const std::unique_ptr<model::Decoder> decoder_;
  model::Arena weights_memory_, gradients_memory_;
  float* weights_ = nullptr;
  float* gradients_ = nullptr;
  Sized training_, evaluation_;
};

// The phase's context under one configuration of the shards.
class PhaseSeat::Epoch {
 public:
  static absl::StatusOr<std::unique_ptr<Epoch>> Create(const kernels::Compute* compute, Model* model,
                                                       const v1::PhaseContext& context,
                                                       std::shared_ptr<client::ShardGroup> group) {
    MILLRACE_ASSIGN_OR_RETURN(v1::TensorTable table, TableOf(model->decoder(), context.phase()));
    MILLRACE_ASSIGN_OR_RETURN(blocks::BlockTable blocks, blocks::BlockTable::Create(table));
    if (group != nullptr && context.table().SerializeAsString() != table.SerializeAsString()) {
      return absl::InternalError("the coordinator's table of tensors is not what this build makes of the model");
    }
    const std::string& objective = context.phase().objective();
    if (objective != "causal_lm" && objective != "sft") {
      return absl::InvalidArgumentError(absl::StrCat("there is no objective '", objective, "'"));
    }
    float* weights = nullptr;
    if (group != nullptr) {
      MILLRACE_ASSIGN_OR_RETURN(weights, model->Weights());
    }
    return std::unique_ptr<Epoch>(
        new Epoch(compute, model, context, std::move(table), std::move(blocks), std::move(group), weights));
  }

  uint64_t number() const { return context_.epoch(); }

  void Plan(v1::WorkResult* result) const {
    *result->mutable_table() = table_;
    for (const v1::ModelPart& part : PartsOf()) *result->add_parts() = part;
    model::Configuration configuration;
    configuration.spec = context_.model();
    configuration.vocab_size = context_.vocab_size();
    (*result->mutable_files())["config.json"] = model::PrintConfig(configuration);
    (*result->mutable_files())["generation_config.json"] = model::PrintGenerationConfig();
  }

  absl::Status Initialize() {
    MILLRACE_RETURN_IF_ERROR(CheckGroup());
    return group_->Load(0, [this](uint32_t index, v1::LoadRequest* request) {
      const blocks::Block& block = blocks_.blocks()[index];
      std::vector<float> values(static_cast<size_t>(block.size));
      const int tensor = static_cast<int>(block.tensor);
      model::StartValues(model_->decoder().tensors()[tensor], tensor, context_.seed(), block.begin,
                         absl::MakeSpan(values));
      request->set_weights(values.data(), values.size() * sizeof(float));
      return absl::OkStatus();
    });
  }

  // The microbatches of a unit one after another; the gradients' sum leaves group by group with the last one.
  absl::Status Train(const v1::WorkUnit& unit, v1::WorkResult* result) {
    MILLRACE_RETURN_IF_ERROR(CheckUnit(unit));
    MILLRACE_ASSIGN_OR_RETURN(float* const gradients, model_->Gradients());
    std::memset(gradients, 0, static_cast<size_t>(model_->decoder().tensors().floats()) * sizeof(float));
    const auto scale = static_cast<float>(1.0 / unit.loss_denominator());
    const Philox dropout = Philox(context_.seed()).Derive(kDropoutPurpose + (uint64_t{context_.phase_index()} << 32));
    parameters_->Fetch(unit.version());
    const std::unique_ptr<client::GradientPush> push = group_->Push(unit.version(), unit.unit());
    bool sent = false;
    const auto send = [&](uint32_t group) {
      sent = true;
      return Send(group, unit.version(), gradients, push.get());
    };
    MILLRACE_ASSIGN_OR_RETURN(
        const Total total, Pass(unit, [&](const Part& part, model::GroupHook need) -> absl::StatusOr<double> {
          const Philox key = dropout.Derive(unit.version() * kMaxMicrobatches + part.microbatch->index());
          MILLRACE_ASSIGN_OR_RETURN(model::CausalLm* const objective,
                                    model_->ForBatch(part.batch, /*for_training=*/true));
          return objective->Gradients(weights_, part.batch, {&key}, scale, need, gradients,
                                      part.last ? model::GroupHook(send) : model::GroupHook(model::IgnoreGroup),
                                      &trainable_);
        }));
    if (!sent) {
      // Nothing counts in the unit: the shards wait for its zeros.
      for (uint32_t group = model_->decoder().groups(); group-- > 0;) MILLRACE_RETURN_IF_ERROR(send(group));
    }
    MILLRACE_RETURN_IF_ERROR(push->Finish());
    total.Report(result);
    return absl::OkStatus();
  }

  absl::Status Evaluate(const v1::WorkUnit& unit, v1::WorkResult* result) {
    MILLRACE_RETURN_IF_ERROR(CheckUnit(unit));
    parameters_->Fetch(unit.version());
    MILLRACE_ASSIGN_OR_RETURN(const Total total,
                              Pass(unit, [this](const Part& part, model::GroupHook need) -> absl::StatusOr<double> {
                                MILLRACE_ASSIGN_OR_RETURN(model::CausalLm* const objective,
                                                          model_->ForBatch(part.batch, /*for_training=*/false));
                                return objective->Loss(weights_, part.batch, need);
                              }));
    total.Report(result);
    return absl::OkStatus();
  }

 private:
  Epoch(const kernels::Compute* compute, Model* model, const v1::PhaseContext& context, v1::TensorTable table,
        blocks::BlockTable blocks, std::shared_ptr<client::ShardGroup> group, float* weights)
      : compute_(compute),
        model_(model),
        context_(context),
        table_(std::move(table)),
        blocks_(std::move(blocks)),
        group_(std::move(group)),
        weights_(weights) {
    for (int i = 0; i < model_->decoder().tensors().size(); ++i) trainable_.push_back(table_.tensors(i).trainable());
    if (group_ == nullptr) return;
    group_->Place(&blocks_, context_.phase().optimizer());
    parameters_ = std::make_unique<Parameters>(&model_->decoder().tensors(), &blocks_, group_.get(),
                                               blocks::WeightBits(context_.phase().optimizer()), weights_);
  }

  // Of all microbatches of a unit.
  struct Total {
    double loss = 0;  // nats, summed over predictions
    uint64_t predictions = 0;

    void Report(v1::WorkResult* result) const {
      result->set_loss_sum(loss);
      result->set_predictions(predictions);
    }
  };

  // A microbatch of a unit.
  struct Part {
    const v1::Microbatch* microbatch;
    model::Batch batch;
    bool last;  // of those in which something counts
  };
  // Computes the microbatches one after another, whose weights are being fetched, and adds up their losses. The fetch
  // has ended when this returns, in any case: it writes into the weights.
  absl::StatusOr<Total> Pass(
      const v1::WorkUnit& unit,
      absl::FunctionRef<absl::StatusOr<double>(const Part& part, model::GroupHook need)> loss_of) {
    const auto need = [this](uint32_t group) { return parameters_->Await(group); };
    Total total;
    std::vector<Part> parts;
    absl::Status done;
    for (const v1::Microbatch& microbatch : unit.microbatches()) {
      const absl::StatusOr<model::Batch> batch = BatchOf(microbatch, context_.model().context());
      done = batch.status();
      if (!done.ok()) break;
      // Rows of padding alone are fine where the batch says what counts; else a batch that predicts nothing is refused.
      if (batch->scored == nullptr || batch->predictions() > 0) parts.push_back({&microbatch, *batch, false});
    }
    if (!parts.empty()) parts.back().last = true;
    for (const Part& part : parts) {
      if (!done.ok()) break;
      const absl::StatusOr<double> sum = loss_of(part, need);
      done = sum.status();
      if (!done.ok()) break;
      total.loss += *sum;
      total.predictions += static_cast<uint64_t>(part.batch.predictions());
    }
    const absl::Status fetched = parameters_->Settle();
    MILLRACE_RETURN_IF_ERROR(done);
    MILLRACE_RETURN_IF_ERROR(fetched);
    return total;
  }

  absl::Status CheckGroup() const {
    return group_ == nullptr ? absl::FailedPreconditionError("there are no shards in this epoch") : absl::OkStatus();
  }
  absl::Status CheckUnit(const v1::WorkUnit& unit) const {
    MILLRACE_RETURN_IF_ERROR(CheckGroup());
    if (unit.microbatches_size() == 0 || !(unit.loss_denominator() > 0)) {
      return absl::InvalidArgumentError("a unit without microbatches or predictions");
    }
    return absl::OkStatus();
  }

  // Codes the gradients of a group's blocks and hands them over; the last block of the forward pass first.
  absl::Status Send(uint32_t group, uint64_t version, const float* gradients, client::GradientPush* push) {
    // The codings came with the weights: a group's are there since its forward pass.
    std::vector<uint32_t> indices;
    for (const uint32_t index : blocks_.BlocksOfGroup(group)) {
      if (blocks_.TensorOf(blocks_.blocks()[index]).trainable) indices.push_back(index);
    }
    std::vector<std::string> coded(indices.size());
    std::vector<absl::StatusOr<uint64_t>> clipped(indices.size(), uint64_t{0});
    compute_->ParallelFor(static_cast<int64_t>(indices.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const blocks::Block& block = blocks_.blocks()[indices[at]];
        const model::TensorSpec& tensor = model_->decoder().tensors()[static_cast<int>(block.tensor)];
        const float* const values = gradients + tensor.offset + block.begin;
        clipped[at] = blocks::Encode(absl::MakeConstSpan(values, static_cast<size_t>(block.size)),
                                     parameters_->coding(block.index), &coded[at]);
      }
    });
    for (size_t i = indices.size(); i-- > 0;) {
      const blocks::Block& block = blocks_.blocks()[indices[i]];
      if (!clipped[i].ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("the gradient is not finite at step ", version + 1, " of phase ", context_.phase().name(),
                         " in ", blocks_.Name(block), ": ", clipped[i].status().message(),
                         "; try a lower learning rate, a longer warm-up or a smaller clip_norm"));
      }
      MILLRACE_RETURN_IF_ERROR(
          push->Add(block.index, parameters_->coding(block.index), std::move(coded[i]), *clipped[i]));
    }
    return absl::OkStatus();
  }

  const kernels::Compute* const compute_;
  Model* const model_;
  const v1::PhaseContext context_;
  const v1::TensorTable table_;
  std::vector<bool> trainable_;  // by tensor of the model that is trained
  const blocks::BlockTable blocks_;
  const std::shared_ptr<client::ShardGroup> group_;
  float* const weights_;  // the model's; null without a group
  std::unique_ptr<Parameters> parameters_;
};

PhaseSeat::PhaseSeat(const kernels::Compute* compute, bool share_memory)
    : compute_(compute), share_memory_(share_memory) {}
PhaseSeat::~PhaseSeat() = default;

void PhaseSeat::Announce(uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  announced_ = std::max(announced_, epoch);
  if (group_ != nullptr && group_->epoch() < announced_) group_->Cancel();
}

void PhaseSeat::Leave() {
  absl::MutexLock lock(&mutex_);
  leaving_ = true;
  if (group_ != nullptr) group_->Cancel();
}

absl::Status PhaseSeat::CheckPresent(uint64_t epoch) const {
  if (leaving_) return absl::CancelledError("the worker leaves");
  if (epoch < announced_) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " has passed; ", announced_, " is the present one"));
  }
  return absl::OkStatus();
}

absl::Status PhaseSeat::Enter(const v1::WorkUnit& unit) {
  {
    absl::MutexLock lock(&mutex_);
    MILLRACE_RETURN_IF_ERROR(CheckPresent(unit.epoch()));
  }
  if (epoch_ != nullptr && epoch_->number() == unit.epoch()) return absl::OkStatus();
  epoch_.reset();
  if (!unit.has_context() || unit.context().epoch() != unit.epoch()) {
    return absl::FailedPreconditionError(absl::StrCat("a unit of epoch ", unit.epoch(), " came without its context"));
  }
  const v1::PhaseContext& context = unit.context();
  if (model_ == nullptr || !model_->Fits(context)) {
    model_.reset();
    MILLRACE_ASSIGN_OR_RETURN(model_, Model::Create(compute_, context));
  }
  std::shared_ptr<client::ShardGroup> group;
  if (context.shard_addresses_size() > 0) {
    group = std::make_shared<client::ShardGroup>(
        context.epoch(), std::vector<std::string>(context.shard_addresses().begin(), context.shard_addresses().end()),
        share_memory_);
  }
  MILLRACE_ASSIGN_OR_RETURN(epoch_, Epoch::Create(compute_, model_.get(), context, group));
  absl::MutexLock lock(&mutex_);
  group_ = std::move(group);
  if (group_ != nullptr && (leaving_ || group_->epoch() < announced_)) group_->Cancel();
  return absl::OkStatus();
}

absl::Status PhaseSeat::Do(const v1::WorkUnit& unit, v1::WorkResult* result) {
  const absl::Status done = EnterAndDo(unit, result);
  if (!absl::IsCancelled(done)) return done;
  // The calls to the shards were ended from here: for this reason.
  absl::MutexLock lock(&mutex_);
  MILLRACE_RETURN_IF_ERROR(CheckPresent(unit.epoch()));
  return done;
}

absl::Status PhaseSeat::EnterAndDo(const v1::WorkUnit& unit, v1::WorkResult* result) {
  MILLRACE_RETURN_IF_ERROR(Enter(unit));
  switch (unit.kind()) {
    case v1::WorkUnit::PLAN:
      epoch_->Plan(result);
      return absl::OkStatus();
    case v1::WorkUnit::INITIALIZE:
      return epoch_->Initialize();
    case v1::WorkUnit::TRAIN:
      return epoch_->Train(unit, result);
    case v1::WorkUnit::EVALUATE:
      return epoch_->Evaluate(unit, result);
    default:
      return absl::InvalidArgumentError(absl::StrCat("there is no unit of kind ", static_cast<int>(unit.kind())));
  }
}

}  // namespace millrace::worker
