// AdaLoRA's pruning by workers' gradients, shards' scores and the coordinator's budget, against what peft kept, step by
// step (tests/golden/make_adapter_goldens.py, prune()).
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/yaml_message.h"
#include "coordinator/pruning.h"
#include "gtest/gtest.h"
#include "kernels/compute.h"
#include "model/formats/hugging_face.h"
#include "model/formats/peft.h"
#include "model/objectives/causal_lm.h"
#include "nlohmann/json.hpp"
#include "ps/block_store.h"
#include "testing/status.h"
#include "worker/phase_models.h"

namespace millrace {
namespace {

constexpr uint64_t kSteps = 4;

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* const entry = file.header().Find(name);
  if (entry == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  std::vector<T> values(file.bytes(*entry).size() / sizeof(T));
  std::memcpy(values.data(), file.bytes(*entry).data(), values.size() * sizeof(T));
  return values;
}

class AdaLora : public ::testing::TestWithParam<const char*> {
 protected:
  AdaLora()
      : base_(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/model/", GetParam())),
        folder_(absl::StrCat(MILLRACE_SOURCE_DIR, "/tests/golden/adapters/", GetParam(), "/adalora_pruned/")),
        answers_(*SafetensorsFile::Open(folder_ + "answers.safetensors")),
        config_(*ReadFile(folder_ + "adapter_config.json", 1 << 20)) {
    const model::Configuration configuration = *model::ReadConfig(base_);
    context_.set_seed(1);
    *context_.mutable_model() = configuration.spec;
    context_.set_vocab_size(configuration.vocab_size);
    v1::PhaseSpec& phase = *context_.mutable_phase();
    phase.set_objective("causal_lm");
    *phase.mutable_adapter() = *model::ParseAdapterConfig(config_, folder_, configuration.spec);
    models_ = *worker::PhaseModels::Create(context_);
    table_ = *models_->Table(phase);
    blocks_ = std::make_unique<blocks::BlockTable>(*blocks::BlockTable::Create(table_));
    weights_.resize(static_cast<size_t>(models_->floats()));
    const worker::PhaseModel& model = models_->trained();
    EXPECT_OK(model::ReadWeights(base_, model.network->tensors(), weights_.data() + model.offset));
    for (const model::TensorSpec& tensor : model.adapter->tensors().tensors()) {
      const std::vector<float> before = Values<float>(*answers_, absl::StrCat("before.", tensor.name));
      EXPECT_EQ(static_cast<int64_t>(before.size()), tensor.size) << tensor.name;
      std::copy(before.begin(), before.end(), weights_.begin() + model.adapter_offset + tensor.offset);
    }
  }

  // A shard that holds all; its optimizer changes nothing where gradients are clipped to nothing.
  std::unique_ptr<ps::BlockStore> Shard() {
    v1::ConfigureRequest request;
    request.set_epoch(1);
    *request.mutable_table() = table_;
    v1::OptimizerSpec& optimizer = *request.mutable_optimizer();
    FillRuleDefaults(&optimizer);
    optimizer.set_type("sgd");
    optimizer.set_weight_decay(0);
    optimizer.set_gradient_bits(32);
    request.set_max_steps(kSteps);
    request.set_units_per_step(1);
    request.set_shard_count(1);
    auto shard = *ps::BlockStore::Create(request, &compute_);
    for (const blocks::Block& block : blocks_->blocks()) {
      v1::LoadRequest load;
      load.set_block(block.index);
      load.set_weights(At(weights_.data(), block), static_cast<size_t>(block.size) * sizeof(float));
      load.set_crc32c(Crc32c(load.weights().data(), load.weights().size()));
      EXPECT_OK(shard->Load(load));
    }
    return shard;
  }
  const float* At(const float* base, const blocks::Block& block) const {
    return base + models_->offsets()[block.tensor] + block.begin;
  }

  std::vector<float> Gradients() {
    const worker::PhaseModel& model = models_->trained();
    std::vector<uint32_t> tokens;
    for (const int64_t token : Values<int64_t>(*answers_, "tokens")) tokens.push_back(static_cast<uint32_t>(token));
    const std::vector<int64_t> shape = answers_->header().Find("tokens")->shape;
    const model::ActiveAdapter active = {model.adapter.get(), weights_.data() + model.adapter_offset};
    const model::NetworkWeights weights(weights_.data() + model.offset, absl::MakeConstSpan(&active, 1));
    std::vector<bool> trainable;
    for (const int place : model.places) trainable.push_back(table_.tensors(place).trainable());
    auto objective = *model::CausalLm::Create(model.network.get(), &compute_, shape[0] * (shape[1] - 1), shape[1] - 1,
                                              /*for_training=*/true);
    std::vector<float> gradients(weights_.size(), 0.0f);
    const absl::StatusOr<double> loss =
        objective.Gradients(weights, {tokens.data(), shape[0], shape[1]}, {}, 1.0f / 24, &model::IgnoreGroup,
                            gradients.data(), &model::IgnoreGroup, &trainable);
    EXPECT_OK(loss);
    return gradients;
  }

  void Push(ps::BlockStore* shard, uint64_t version, const std::vector<float>& gradients) {
    for (const blocks::Block& block : blocks_->blocks()) {
      if (!blocks_->TensorOf(block).trainable) continue;
      v1::PushRequest push;
      push.set_version(version);
      push.set_block(block.index);
      std::string ignored(shard->PulledBytes(block.index), '\0'), coded;
      ASSERT_OK(shard->Pull(block.index, version, ignored.data(), push.mutable_coding()));
      const absl::StatusOr<uint64_t> saturated =
          blocks::Encode(absl::MakeConstSpan(At(gradients.data(), block), static_cast<size_t>(block.size)),
                         *blocks::CodingFromProto(push.coding()), &coded);
      ASSERT_TRUE(saturated.ok() && *saturated == 0) << blocks_->Name(block);
      push.set_values(coded);
      push.set_crc32c(Crc32c(coded.data(), coded.size()));
      ASSERT_TRUE(*shard->Push(push));
    }
  }

  const std::string base_, folder_;
  const std::unique_ptr<SafetensorsFile> answers_;
  const std::string config_;
  v1::PhaseContext context_;
  std::unique_ptr<worker::PhaseModels> models_;
  v1::TensorTable table_;
  std::unique_ptr<blocks::BlockTable> blocks_;
  std::vector<float> weights_;
  const kernels::Compute compute_{kernels::DetectIsa(), 1};
};

INSTANTIATE_TEST_SUITE_P(Families, AdaLora, ::testing::Values("gpt2", "llama"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(AdaLora, KeepsWhatPeftKept) {
  const auto config = nlohmann::json::parse(config_);
  ASSERT_EQ(config["total_step"], kSteps);
  const v1::Pruning pruning = models_->Prunings().at(0);
  ASSERT_OK(coordinator::CheckPruning(pruning, *blocks_, kSteps));
  const std::unique_ptr<ps::BlockStore> shard = Shard();
  for (uint64_t version = 0; version < kSteps; ++version) {
    Push(shard.get(), version, Gradients());
    const coordinator::PruningStep step = coordinator::PruningAt(pruning, *blocks_, version + 1, kSteps);
    ASSERT_TRUE(step.kept.has_value());
    v1::NormsRequest asked;
    asked.set_version(version);
    asked.set_scores(true);
    asked.set_tracked(step.tracked);
    v1::NormsReply norms;
    ASSERT_OK(shard->Norms(asked, &norms));
    std::vector<std::vector<double>> scores(blocks_->tensors().size());
    for (const v1::BlockScores& block : norms.scores()) {
      scores[blocks_->blocks()[block.block()].tensor].assign(block.sums().begin(), block.sums().end());
    }
    v1::CommitRequest commit;
    commit.set_version(version);
    commit.set_tracked(step.tracked);
    for (const v1::ZeroedElements& zeroed : coordinator::Prune(pruning, *blocks_, scores, *step.kept)) {
      *commit.add_zeroed() = zeroed;
    }
    bool applied = false;
    ASSERT_OK(shard->Commit(commit, &applied));
    for (const blocks::Block& block : blocks_->blocks()) {
      v1::Coding ignored;
      ASSERT_OK(shard->Pull(block.index, version + 1,
                            reinterpret_cast<char*>(weights_.data() + models_->offsets()[block.tensor] + block.begin),
                            &ignored));
    }
  }
  const worker::PhaseModel& model = models_->trained();
  size_t fallen = 0;
  for (const model::Adapter::AtLinear* const at : model.adapter->triplets()) {
    const model::TensorSpec& tensor = model.adapter->tensors()[at->e];
    std::vector<bool> kept;
    for (int64_t i = 0; i < tensor.size; ++i) {
      kept.push_back(weights_[static_cast<size_t>(model.adapter_offset + tensor.offset + i)] != 0.0f);
      fallen += kept.back() ? 0 : 1;
    }
    const std::string name(absl::StripPrefix(tensor.name, model::kAdapterPrefix));
    EXPECT_EQ(kept, config["rank_pattern"].at(name).get<std::vector<bool>>()) << name;
  }
  EXPECT_EQ(fallen, 2 * model.adapter->triplets().size());
}

}  // namespace
}  // namespace millrace
