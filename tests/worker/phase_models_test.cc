#include "worker/phase_models.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "blocks/block_table.h"
#include "common/job_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::PhaseContext Context(const std::string& objective, const std::string& adapter_type) {
  v1::PhaseContext context;
  v1::ModelSpec& model = *context.mutable_model();
  model.set_family("llama");
  model.set_layers(2);
  model.set_hidden_size(16);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_intermediate_size(24);
  model.set_context(20);
  model.set_tied_embeddings(true);
  model.set_rope_theta(10000);
  model.set_norm_epsilon(1e-5);
  model.set_init_std(0.1);
  context.set_vocab_size(30);
  context.mutable_phase()->set_name("adapt");
  context.mutable_phase()->set_objective(objective);
  if (!adapter_type.empty()) {
    context.mutable_phase()->mutable_adapter()->set_type(adapter_type);
    FillAdapterDefaults(model, context.mutable_phase()->mutable_adapter());
  }
  return context;
}

std::unique_ptr<PhaseModels> Make(const v1::PhaseContext& context) {
  absl::StatusOr<std::unique_ptr<PhaseModels>> models = PhaseModels::Create(context);
  EXPECT_OK(models);
  return *std::move(models);
}

v1::TensorTable TableOf(const PhaseModels& models, const v1::PhaseContext& context) {
  absl::StatusOr<v1::TensorTable> table = models.Table(context.phase());
  EXPECT_OK(table);
  return *std::move(table);
}

std::vector<std::string> Prefixes(const PhaseModels& models) {
  std::vector<std::string> prefixes;
  for (const PhaseModel& model : models.models()) {
    for (const v1::ModelPart& part : model.parts) prefixes.push_back(part.prefix());
  }
  return prefixes;
}

// Every tensor of every model has one place, which names it and where it lies; places of trained models come first in
// memory and nothing overlaps.
void ExpectWhole(const PhaseModels& models, const v1::TensorTable& table) {
  ASSERT_OK(blocks::BlockTable::Create(table));
  ASSERT_EQ(static_cast<size_t>(table.tensors_size()), models.offsets().size());
  std::map<int64_t, int64_t> lies;  // end by begin
  std::set<int> seen;
  for (const PhaseModel& model : models.models()) {
    const model::TensorList& own = model.network->tensors();
    for (size_t i = 0; i < model.places.size(); ++i) {
      const int place = model.places[i];
      const bool of_adapter = static_cast<int>(i) >= own.size();
      const model::TensorSpec& spec =
          of_adapter ? model.adapter->tensors()[static_cast<int>(i) - own.size()] : own[static_cast<int>(i)];
      EXPECT_THAT(table.tensors(place).name(), HasSubstr(spec.name));
      const int64_t offset = models.offsets()[static_cast<size_t>(place)];
      EXPECT_EQ(offset, (of_adapter ? model.adapter_offset : model.offset) + spec.offset);
      if (model.shares && !of_adapter) continue;
      EXPECT_TRUE(seen.insert(place).second) << table.tensors(place).name();
      lies[offset] = offset + spec.size;
      EXPECT_LE(offset + spec.size, table.tensors(place).trainable() ? models.trained_floats() : models.floats());
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), table.tensors_size());
  int64_t end = 0;
  for (const auto& [begin, its_end] : lies) {
    EXPECT_GE(begin, end);
    end = its_end;
  }
}

TEST(PhaseModels, OnlyTheAdapterIsTrained) {
  for (const std::string type :
       {"lora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2", "llama_adapter"}) {
    const v1::PhaseContext context = Context("causal_lm", type);
    const std::unique_ptr<PhaseModels> models = Make(context);
    const v1::TensorTable table = TableOf(*models, context);
    ExpectWhole(*models, table);
    EXPECT_THAT(Prefixes(*models), ElementsAre("", "adapter/"));
    for (const v1::Tensor& tensor : table.tensors()) {
      EXPECT_EQ(tensor.trainable(), tensor.name().starts_with("adapter/")) << tensor.name();
    }
    const v1::ModelPart& part = models->trained().parts[1];
    EXPECT_EQ(part.file(), "adapter_model.safetensors");
    EXPECT_EQ(part.start_file(), "adapter_model.safetensors");
    EXPECT_TRUE(part.may_be_new());
    const bool takes_positions = type != "lora" && type != "ia3" && type != "llama_adapter";
    EXPECT_EQ(models->context(), takes_positions ? 12u : 20u) << type;
  }
}

TEST(PhaseModels, AnAdapterIsTrainedOnWhereThePhaseStartsFromOne) {
  v1::PhaseContext context = Context("causal_lm", "lora");
  (*context.mutable_adapters())[""] = context.phase().adapter();
  EXPECT_FALSE(Make(context)->trained().parts[1].may_be_new());
}

TEST(PhaseModels, AReferenceIsTheFrozenModelItself) {
  v1::PhaseContext context = Context("dpo", "lora");
  std::unique_ptr<PhaseModels> models = Make(context);
  ExpectWhole(*models, TableOf(*models, context));
  EXPECT_THAT(Prefixes(*models), ElementsAre("", "adapter/"));
  const PhaseModel* reference = models->Find(kReference);
  EXPECT_EQ(reference->offset, models->trained().offset);
  EXPECT_EQ(reference->adapter, nullptr);

  // With the adapter that the phase started from, as it was.
  (*context.mutable_adapters())[""] = context.phase().adapter();
  models = Make(context);
  const v1::TensorTable table = TableOf(*models, context);
  ExpectWhole(*models, table);
  EXPECT_THAT(Prefixes(*models), ElementsAre("", "adapter/", "reference/adapter/"));
  for (const v1::Tensor& tensor : table.tensors()) {
    EXPECT_EQ(tensor.trainable(), tensor.name().starts_with("adapter/")) << tensor.name();
  }
  EXPECT_EQ(models->Find(kReference)->parts[0].file(), "");

  // Another reference is another model.
  context.mutable_phase()->set_reference("sft@best");
  models = Make(context);
  ExpectWhole(*models, TableOf(*models, context));
  EXPECT_THAT(Prefixes(*models), ElementsAre("", "adapter/", "reference/"));
  EXPECT_NE(models->Find(kReference)->offset, 0);

  // As without an adapter.
  const v1::PhaseContext plain = Context("dpo", "");
  models = Make(plain);
  ExpectWhole(*models, TableOf(*models, plain));
  EXPECT_THAT(Prefixes(*models), ElementsAre("", "reference/"));
}

TEST(PhaseModels, ARewardModelsHeadBelongsWithItsAdapter) {
  const v1::PhaseContext context = Context("reward", "lora");
  const std::unique_ptr<PhaseModels> models = Make(context);
  const v1::TensorTable table = TableOf(*models, context);
  ExpectWhole(*models, table);
  int heads = 0;
  for (const v1::Tensor& tensor : table.tensors()) {
    EXPECT_EQ(tensor.trainable(), tensor.name().starts_with("adapter/")) << tensor.name();
    heads += tensor.name() == "adapter/base_model.model.score.weight" ? 1 : 0;
  }
  EXPECT_EQ(heads, 1);
  const v1::ModelPart& part = models->trained().parts[1];
  EXPECT_EQ(part.fresh().at("base_model.model.score.weight").size(), 16 * sizeof(float));
}

TEST(PhaseModels, AnotherAdapterIsAnotherPhasesModels) {
  const v1::PhaseContext context = Context("causal_lm", "lora");
  const std::unique_ptr<PhaseModels> models = Make(context);
  EXPECT_TRUE(models->Fits(context));
  v1::PhaseContext other = context;
  other.mutable_phase()->mutable_adapter()->set_rank(4);
  EXPECT_FALSE(models->Fits(other));
  other = context;
  (*other.mutable_adapters())[""] = context.phase().adapter();
  EXPECT_FALSE(models->Fits(other));
}

TEST(PhaseModels, PatternsMayNameAnAdaptersTensors) {
  v1::PhaseContext context = Context("causal_lm", "lora");
  v1::TrainableSpec& trainable = *context.mutable_phase()->mutable_trainable();
  trainable.add_freeze("*lora_A*");
  v1::LearningRateSpec& rate = *trainable.add_learning_rates();
  rate.set_pattern("*lora_B*");
  rate.set_multiplier(16);
  const v1::TensorTable table = TableOf(*Make(context), context);
  for (const v1::Tensor& tensor : table.tensors()) {
    const bool is_b = tensor.name().find("lora_B") != std::string::npos;
    EXPECT_EQ(tensor.trainable(), is_b) << tensor.name();
    EXPECT_EQ(tensor.learning_rate_multiplier(), is_b ? 16 : 0) << tensor.name();
  }
}

}  // namespace
}  // namespace millrace::worker
