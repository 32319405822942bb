#include "worker/phase.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/adapters/orthogonality.h"
#include "model/adapters/start.h"
#include "model/arena.h"
#include "model/formats/config_json.h"
#include "model/formats/peft.h"
#include "text/tokenizer.h"
#include "worker/model_flops.h"
#include "worker/objective.h"
#include "worker/parameters.h"
#include "worker/phase_models.h"

namespace millrace::worker {
namespace {

constexpr uint64_t kDropoutPurpose = 0x44524F50;          // "DROP"
constexpr uint64_t kMaxMicrobatches = uint64_t{1} << 20;  // of a step

}  // namespace

// The models of a phase and the memory of their weights.
class PhaseSeat::Models {
 public:
  static absl::StatusOr<std::unique_ptr<Models>> Create(const v1::PhaseContext& context) {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<PhaseModels> models, PhaseModels::Create(context));
    return std::unique_ptr<Models>(new Models(std::move(models)));
  }

  const PhaseModels& models() const { return *models_; }
  // Made on first use. RESOURCE_EXHAUSTED if there is no memory for them.
  absl::StatusOr<float*> Weights() {
    return Memory("the weights of the phase's models", models_->floats(), &weights_memory_, &weights_);
  }
  // What is frozen in the weights: that of models which began with these contents. Empty: nothing yet.
  const std::map<std::string, std::string>& frozen() const { return frozen_; }
  void SetFrozen(std::map<std::string, std::string> contents) { frozen_ = std::move(contents); }
  absl::StatusOr<float*> Gradients() {
    return Memory("the model's gradients", models_->trained_floats(), &gradients_memory_, &gradients_);
  }

 private:
  explicit Models(std::unique_ptr<PhaseModels> models) : models_(std::move(models)) {}

  static absl::StatusOr<float*> Memory(absl::string_view what, int64_t floats, model::Arena* arena, float** memory) {
    if (*memory == nullptr) {
      absl::StatusOr<model::Arena> made = model::Arena::Create(floats);
      if (!made.ok()) return Annotate(made.status(), what);
      *arena = *std::move(made);
      *memory = arena->Take(floats);
    }
    return *memory;
  }

  const std::unique_ptr<PhaseModels> models_;
  std::map<std::string, std::string> frozen_;
  model::Arena weights_memory_, gradients_memory_;
  float* weights_ = nullptr;
  float* gradients_ = nullptr;
};

// The phase's context under one configuration of the shards.
class PhaseSeat::Epoch {
 public:
  static absl::StatusOr<std::unique_ptr<Epoch>> Create(const kernels::Compute* compute, Models* models,
                                                       const v1::PhaseContext& context,
                                                       std::shared_ptr<client::ShardGroup> group) {
    MILLRACE_ASSIGN_OR_RETURN(v1::TensorTable table, models->models().Table(context.phase()));
    MILLRACE_ASSIGN_OR_RETURN(blocks::BlockTable blocks, blocks::BlockTable::Create(table));
    if (group != nullptr && context.table().SerializeAsString() != table.SerializeAsString()) {
      return absl::InternalError("the coordinator's table of tensors is not what this build makes of the model");
    }
    float* weights = nullptr;
    if (group != nullptr) {
      MILLRACE_ASSIGN_OR_RETURN(weights, models->Weights());
    }
    auto epoch = std::unique_ptr<Epoch>(
        new Epoch(compute, models, context, std::move(table), std::move(blocks), std::move(group), weights));
    MILLRACE_RETURN_IF_ERROR(epoch->TakeInitText());
    // What the objective lacks is told before anything is trained.
    MILLRACE_RETURN_IF_ERROR(epoch->ObjectiveOf(context.phase().objective()).status());
    return epoch;
  }

  uint64_t number() const { return context_.epoch(); }
  kernels::Precision precision() const {
    const model::Network& network = *models_->models().trained().network;
    return network.spec().precision() == "bf16" ? kernels::Precision::kBf16 : kernels::Precision::kF32;
  }
  double Flops(const v1::WorkUnit& unit) const { return ModelFlops(models_->models().trained(), table_, unit); }

  void Plan(v1::WorkResult* result) const {
    *result->mutable_table() = table_;
    for (const PhaseModel& model : models_->models().models()) {
      for (const v1::ModelPart& part : model.parts) *result->add_parts() = part;
    }
    for (v1::Pruning& pruning : models_->models().Prunings()) *result->add_pruning() = std::move(pruning);
    const model::Network& network = *models_->models().trained().network;
    model::Configuration configuration;
    configuration.spec = context_.model();
    configuration.vocab_size = context_.vocab_size();
    configuration.head = network.score() >= 0 ? model::Head::kScalar : model::Head::kLanguage;
    if (const auto padding = context_.special_tokens().find("[PAD]"); padding != context_.special_tokens().end()) {
      configuration.padding = padding->second;
    }
    (*result->mutable_files())["config.json"] = model::PrintConfig(configuration);
    if (network.extends()) {
      (*result->mutable_files())["generation_config.json"] = model::PrintGenerationConfig(configuration);
    }
    if (const PhaseModel& trained = models_->models().trained(); trained.adapter != nullptr) {
      (*result->mutable_files())[model::kAdapterConfigFile] =
          model::PrintAdapterConfig(*trained.adapter, context_.model(), /*base=*/"");
    }
  }

  // New weights: of all tensors where there is one model, or else of adapters that are new, beside what is loaded.
  absl::Status Initialize() {
    MILLRACE_RETURN_IF_ERROR(CheckGroup());
    if (models_->models().trained().adapter != nullptr) return InitializeAdapters();
    if (models_->models().models().size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("phase ", context_.phase().name(), " begins with trained models, not with new weights"));
    }
    return group_->Load(0, [this](uint32_t index, v1::LoadRequest* request) {
      const blocks::Block& block = blocks_.blocks()[index];
      std::vector<float> values(static_cast<size_t>(block.size));
      const int tensor = static_cast<int>(block.tensor);
      model::StartValues(models_->models().trained().network->tensors()[tensor], tensor, context_.seed(), block.begin,
                         absl::MakeSpan(values));
      request->set_weights(values.data(), values.size() * sizeof(float));
      return absl::OkStatus();
    });
  }

  // The microbatches of a unit one after another; the gradients' sum leaves group by group with the last one.
  absl::Status Train(const v1::WorkUnit& unit, v1::WorkResult* result) {
    MILLRACE_RETURN_IF_ERROR(CheckUnit(unit));
    MILLRACE_ASSIGN_OR_RETURN(Objective* const objective, ObjectiveOf(context_.phase().objective()));
    MILLRACE_ASSIGN_OR_RETURN(float* const gradients, models_->Gradients());
    // Only what is trained: beside an adapter most of the memory is never touched.
    for (int i = 0; i < table_.tensors_size(); ++i) {
      if (!table_.tensors(i).trainable()) continue;
      const auto size = static_cast<size_t>(blocks_.tensors()[static_cast<size_t>(i)].size);
      std::memset(gradients + models_->models().offsets()[static_cast<size_t>(i)], 0, size * sizeof(float));
    }
    const Philox dropout = Philox(context_.seed()).Derive(kDropoutPurpose + (uint64_t{context_.phase_index()} << 32));
    parameters_->Fetch(unit.version());
    const std::unique_ptr<client::GradientPush> push = group_->Push(unit.version(), unit.unit());
    // What is a function of the weights alone counts once a step: in the unit that has its first microbatch.
    const bool regularizes = std::any_of(unit.microbatches().begin(), unit.microbatches().end(),
                                         [](const v1::Microbatch& microbatch) { return microbatch.index() == 0; });
    double orthogonality = 0;
    bool sent = false;
    const auto send = [&](uint32_t group) {
      sent = true;
      if (regularizes) orthogonality += AddOrthogonality(group, gradients);
      return Send(group, unit.version(), gradients, push.get());
    };
    MILLRACE_RETURN_IF_ERROR(
        Pass(unit, *objective, result,
             [&](const v1::Microbatch& microbatch, bool last, model::GroupHook need,
                 Measured* measured) -> absl::StatusOr<double> {
               const Philox key = dropout.Derive(unit.version() * kMaxMicrobatches + microbatch.index());
               return objective->Gradients({microbatch,
                                            need,
                                            {&key},
                                            1.0 / unit.loss_denominator(),
                                            unit.statistics(),
                                            gradients,
                                            last ? model::GroupHook(send) : model::GroupHook(model::IgnoreGroup)},
                                           measured);
             }));
    if (!sent) {
      // Nothing counts in the unit: the shards wait for its zeros.
      for (uint32_t group = blocks_.groups(); group-- > 0;) MILLRACE_RETURN_IF_ERROR(send(group));
    }
    if (regularizes && !models_->models().Prunings().empty()) {
      v1::Statistic& statistic = *result->add_statistics();
      statistic.set_name("orthogonality");
      statistic.set_sum(orthogonality);
      statistic.set_count(1);
    }
    return push->Finish();
  }

  absl::Status Evaluate(const v1::WorkUnit& unit, v1::WorkResult* result) {
    MILLRACE_RETURN_IF_ERROR(CheckUnit(unit));
    MILLRACE_ASSIGN_OR_RETURN(Objective* const objective,
                              ObjectiveOf(unit.objective().empty() ? context_.phase().objective() : unit.objective()));
    parameters_->Fetch(unit.version());
    return Pass(unit, *objective, result,
                [&](const v1::Microbatch& microbatch, bool, model::GroupHook need, Measured* measured) {
                  return objective->Loss({microbatch, need}, measured);
                });
  }

  absl::Status Rollout(const v1::WorkUnit& unit, v1::WorkResult* result) {
    MILLRACE_RETURN_IF_ERROR(CheckUnit(unit));
    const bool samples = unit.kind() == v1::WorkUnit::SAMPLE;
    MILLRACE_ASSIGN_OR_RETURN(Objective* const objective,
                              ObjectiveOf(samples ? kSamplesObjective : context_.phase().objective()));
    parameters_->Fetch(unit.version());
    return Pass(unit, *objective, result,
                [&](const v1::Microbatch& microbatch, bool, model::GroupHook need,
                    Measured* measured) -> absl::StatusOr<double> {
                  MILLRACE_ASSIGN_OR_RETURN(std::vector<v1::Experience> experiences,
                                            objective->Rollout({microbatch, need, unit.statistics()}, measured));
                  for (v1::Experience& experience : experiences) *result->add_experiences() = std::move(experience);
                  return 0.0;
                });
  }

 private:
  Epoch(const kernels::Compute* compute, Models* models, const v1::PhaseContext& context, v1::TensorTable table,
        blocks::BlockTable blocks, std::shared_ptr<client::ShardGroup> group, float* weights)
      : compute_(compute),
        models_(models),
        context_(context),
        table_(std::move(table)),
        blocks_(std::move(blocks)),
        group_(std::move(group)),
        weights_(weights) {
    if (group_ == nullptr) return;
    group_->Place(&blocks_, context_.phase().optimizer());
    // What is frozen is a function of what the models began with, and of which tensors are: those may be other ones.
    contents_ = {context_.contents().begin(), context_.contents().end()};
    contents_["frozen"] = absl::StrCat(context_.phase().trainable().SerializeAsString(), " ",
                                       context_.phase().adapter().SerializeAsString(), " ",
                                       blocks::WeightBits(context_.phase().optimizer()));
    // Of each part it must be known.
    size_t parts = 0;
    for (const PhaseModel& model : models_->models().models()) parts += model.parts.size();
    const bool known = context_.contents().size() == parts;
    const bool holds = known && models_->frozen() == contents_;
    models_->SetFrozen({});
    parameters_ = std::make_unique<Parameters>(&models_->models().offsets(), &blocks_, group_.get(),
                                               blocks::WeightBits(context_.phase().optimizer()), holds, weights_);
  }

  // Made on first use.
  absl::StatusOr<Objective*> ObjectiveOf(const std::string& name) {
    std::unique_ptr<Objective>& objective = objectives_[name];
    if (objective == nullptr) {
      MILLRACE_ASSIGN_OR_RETURN(objective,
                                MakeObjective(name, {compute_, &context_, &models_->models(), &table_, weights_}));
    }
    return objective.get();
  }

  // Computes the microbatches one after another, whose weights are being fetched, and fills in what they sum up to. The
  // fetch has ended when this returns, in any case: it writes into the weights. `last`: of those in which something
  // counts.
  absl::Status Pass(const v1::WorkUnit& unit, const Objective& objective, v1::WorkResult* result,
                    absl::FunctionRef<absl::StatusOr<double>(const v1::Microbatch& microbatch, bool last,
                                                             model::GroupHook need, Measured* measured)>
                        loss_of) {
    const auto need = [this](uint32_t group) { return parameters_->Await(group); };
    double loss = 0;
    uint64_t predictions = 0;
    Measured measured;
    std::vector<const v1::Microbatch*> counting;
    absl::Status done;
    for (const v1::Microbatch& microbatch : unit.microbatches()) {
      const absl::StatusOr<uint64_t> count = objective.Count(microbatch);
      done = count.status();
      if (done.ok() && microbatch.index() >= kMaxMicrobatches) {
        done = absl::InvalidArgumentError(
            absl::StrCat("microbatch ", microbatch.index(), " is beyond the ", kMaxMicrobatches, " of a step"));
      }
      if (!done.ok()) break;
      if (*count > 0) counting.push_back(&microbatch);
      predictions += *count;
    }
    for (const v1::Microbatch* const microbatch : counting) {
      if (!done.ok()) break;
      const absl::StatusOr<double> sum = loss_of(*microbatch, microbatch == counting.back(), need, &measured);
      done = sum.status();
      if (done.ok()) loss += *sum;
    }
    const absl::Status fetched = parameters_->Settle();
    if (parameters_->holds_frozen()) models_->SetFrozen(contents_);
    MILLRACE_RETURN_IF_ERROR(done);
    MILLRACE_RETURN_IF_ERROR(fetched);
    result->set_loss_sum(loss);
    result->set_predictions(predictions);
    measured.Report(result);
    return absl::OkStatus();
  }

  absl::Status TakeInitText() {
    const std::string& text = context_.phase().adapter().init_text();
    if (text.empty()) return absl::OkStatus();
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                              text::ParseTokenizer(context_.tokenizer_json(), "the job's tokenizer"));
    MILLRACE_RETURN_IF_ERROR(Annotate(tokenizer->EncodeOrdinary(text, &init_tokens_), "adapter.init_text"));
    if (init_tokens_.empty()) return absl::InvalidArgumentError("adapter.init_text is empty");
    return absl::OkStatus();
  }

  // Start values may depend on the model's own weights.
  absl::Status InitializeAdapters() {
    parameters_->Fetch(0);
    MILLRACE_RETURN_IF_ERROR(parameters_->Settle());
    parameters_->Forget();
    std::map<uint32_t, std::vector<float>> values;  // by tensor of the table
    for (const PhaseModel& model : models_->models().models()) {
      if (model.adapter == nullptr || !model.adapter_is_new) continue;
      std::vector<float> weights(static_cast<size_t>(model.adapter->tensors().floats()));
      MILLRACE_RETURN_IF_ERROR(model::StartAdapter(*compute_, *model.network, weights_ + model.offset, *model.adapter,
                                                   context_.seed(), init_tokens_, weights.data()));
      for (int i = 0; i < model.adapter->tensors().size(); ++i) {
        const model::TensorSpec& tensor = model.adapter->tensors()[i];
        const int place = model.places[static_cast<size_t>(model.network->tensors().size() + i)];
        const float* const begin = weights.data() + tensor.offset;
        values.emplace(static_cast<uint32_t>(place), std::vector<float>(begin, begin + tensor.size));
      }
    }
    return group_->Replace(
        0, [&](uint32_t index) { return values.contains(blocks_.blocks()[index].tensor); },
        [&](uint32_t index, v1::LoadRequest* request) {
          const blocks::Block& block = blocks_.blocks()[index];
          request->set_weights(values.at(block.tensor).data() + block.begin,
                               static_cast<size_t>(block.size) * sizeof(float));
          return absl::OkStatus();
        });
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

  // What the phase's AdaLoRA adapters add to the loss by tensors of a group of the table; the gradients take it in.
  double AddOrthogonality(uint32_t group, float* gradients) {
    double sum = 0;
    for (const PhaseModel& model : models_->models().models()) {
      if (!model.trained || model.adapter == nullptr || group < model.first_group) continue;
      sum += model::AddOrthogonality(*compute_, *model.adapter, group - model.first_group,
                                     model.adapter->spec().orthogonality(), weights_ + model.adapter_offset,
                                     gradients + model.adapter_offset);
    }
    return sum;
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
        const float* const values = gradients + models_->models().offsets()[block.tensor] + block.begin;
        clipped[at] = blocks::Encode(absl::MakeConstSpan(values, static_cast<size_t>(block.size)),
                                     parameters_->coding(block.index), &coded[at]);
      }
    });
    for (size_t i = indices.size(); i-- > 0;) {
      const blocks::Block& block = blocks_.blocks()[indices[i]];
      if (!clipped[i].ok()) {
        absl::Status error = absl::InvalidArgumentError(
            absl::StrCat("the gradient is not finite at step ", version + 1, " of phase ", context_.phase().name(),
                         " in ", blocks_.Name(block), ": ", clipped[i].status().message(),
                         "; try a lower learning rate, a longer warm-up or a smaller clip_norm"));
        error.SetPayload(kNotFinite, absl::Cord());
        return error;
      }
      MILLRACE_RETURN_IF_ERROR(
          push->Add(block.index, parameters_->coding(block.index), std::move(coded[i]), *clipped[i]));
    }
    return absl::OkStatus();
  }

  const kernels::Compute* const compute_;
  Models* const models_;
  const v1::PhaseContext context_;
  const v1::TensorTable table_;
  const blocks::BlockTable blocks_;
  const std::shared_ptr<client::ShardGroup> group_;
  float* const weights_;  // the models'; null without a group
  std::unique_ptr<Parameters> parameters_;
  std::vector<uint32_t> init_tokens_;                             // whose embeddings a prompt begins with
  std::map<std::string, std::string> contents_;                   // of what is frozen
  std::map<std::string, std::unique_ptr<Objective>> objectives_;  // by name
};

PhaseSeat::PhaseSeat(const kernels::Compute* compute, bool share_memory,
                     std::shared_ptr<grpc::ChannelCredentials> credentials)
    : compute_(compute), share_memory_(share_memory), credentials_(std::move(credentials)) {}
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
  if (models_ == nullptr || !models_->models().Fits(context)) {
    models_.reset();
    MILLRACE_ASSIGN_OR_RETURN(models_, Models::Create(context));
  }
  std::shared_ptr<client::ShardGroup> group;
  if (context.shard_addresses_size() > 0) {
    group = std::make_shared<client::ShardGroup>(
        context.epoch(), std::vector<std::string>(context.shard_addresses().begin(), context.shard_addresses().end()),
        share_memory_, credentials_);
  }
  MILLRACE_ASSIGN_OR_RETURN(epoch_, Epoch::Create(compute_, models_.get(), context, group));
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
  model_flops_ = 0;
  MILLRACE_RETURN_IF_ERROR(Enter(unit));
  switch (unit.kind()) {
    case v1::WorkUnit::PLAN:
      epoch_->Plan(result);
      return absl::OkStatus();
    case v1::WorkUnit::INITIALIZE:
      return epoch_->Initialize();
    case v1::WorkUnit::TRAIN:
      MILLRACE_RETURN_IF_ERROR(epoch_->Train(unit, result));
      model_flops_ = epoch_->Flops(unit);
      return absl::OkStatus();
    case v1::WorkUnit::EVALUATE:
      MILLRACE_RETURN_IF_ERROR(epoch_->Evaluate(unit, result));
      model_flops_ = epoch_->Flops(unit);
      return absl::OkStatus();
    case v1::WorkUnit::ROLLOUT:
    case v1::WorkUnit::SAMPLE:
      return epoch_->Rollout(unit, result);
    default:
      return absl::InvalidArgumentError(absl::StrCat("there is no unit of kind ", static_cast<int>(unit.kind())));
  }
}

kernels::Precision PhaseSeat::precision() const {
  return epoch_ == nullptr ? kernels::Precision::kF32 : epoch_->precision();
}

}  // namespace millrace::worker
