// Units of work against shards: pretended ones, which show what arrives and say what they like, and real ones.
#include "worker/phase.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "blocks/placement.h"
#include "client/shard_group.h"
#include "common/checksum.h"
#include "common/grpc_server.h"
#include "common/machine.h"
#include "common/metrics.h"
#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/bfloat16.h"
#include "model/families/network.h"
#include "model/formats/config_json.h"
#include "model/objectives/causal_lm.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "ps/parameter_service.h"
#include "ps/shard_metrics.h"
#include "testing/status.h"

namespace millrace::worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Three blocks of token embeddings, two of them large: one for each shard.
constexpr uint32_t kVocab = 5600;
constexpr uint32_t kContext = 10;

v1::ModelSpec TinyModel() {
  v1::ModelSpec spec;
  spec.set_family("gpt2");
  spec.set_layers(2);
  spec.set_hidden_size(24);
  spec.set_heads(4);
  spec.set_kv_heads(4);
  spec.set_intermediate_size(40);
  spec.set_context(kContext);
  spec.set_precision("f32");
  spec.set_dropout(0);
  spec.set_tied_embeddings(true);
  spec.set_rope_theta(10000);
  spec.set_norm_epsilon(1e-5);
  spec.set_init_std(0.1);
  spec.set_bias(true);
  return spec;
}

absl::Status NothingToWaitFor(uint32_t) { return absl::OkStatus(); }

// Holds blocks and shows what arrives.
class PretendedShard final : public v1::ParameterServer::Service {
 public:
  explicit PretendedShard(std::vector<uint32_t> blocks) : blocks_(std::move(blocks)) {}

  grpc::Status Load(grpc::ServerContext*, grpc::ServerReader<v1::LoadRequest>* stream, v1::LoadReply* reply) override {
    v1::LoadRequest request;
    while (stream->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      loads_.push_back(request);
    }
    reply->set_complete(true);
    return grpc::Status::OK;
  }

  grpc::Status Pull(grpc::ServerContext* context, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::PullReply>* stream) override {
    absl::MutexLock lock(&mutex_);
    ++pulls_;
    while (version_ < request->version()) {
      if (context->IsCancelled()) return {grpc::StatusCode::CANCELLED, "cancelled"};
      changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(2));
    }
    if (version_ > request->version()) return {grpc::StatusCode::FAILED_PRECONDITION, "the version has passed"};
    for (const uint32_t block : blocks_) {
      const bool wanted =
          request->blocks().empty() || std::count(request->blocks().begin(), request->blocks().end(), block) > 0;
      if (!wanted) continue;
      pulled_.insert(block);
      v1::PullReply reply;
      reply.set_block(block);
      reply.set_weights(weights_[block]);
      reply.set_crc32c(Crc32c(reply.weights().data(), reply.weights().size()));
      if (codings_.contains(block)) *reply.mutable_coding() = blocks::CodingToProto(codings_[block]);
      stream->Write(reply);
    }
    return grpc::Status::OK;
  }

  grpc::Status Push(grpc::ServerContext*, grpc::ServerReader<v1::PushRequest>* stream, v1::PushReply* reply) override {
    v1::PushRequest request;
    uint64_t added = 0;
    while (stream->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      pushes_.push_back(request);
      ++added;
    }
    reply->set_blocks_added(added);
    return grpc::Status::OK;
  }

  void Set(uint32_t block, std::string weights) {
    absl::MutexLock lock(&mutex_);
    weights_[block] = std::move(weights);
  }
  void SetCoding(uint32_t block, const blocks::Coding& coding) {
    absl::MutexLock lock(&mutex_);
    codings_[block] = coding;
  }
  void SetVersion(uint64_t version) {
    absl::MutexLock lock(&mutex_);
    version_ = version;
  }
  std::vector<v1::LoadRequest> loads() {
    absl::MutexLock lock(&mutex_);
    return loads_;
  }
  std::vector<v1::PushRequest> TakePushes() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(pushes_, {});
  }
  std::set<uint32_t> TakePulled() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(pulled_, {});
  }
  int pulls() {
    absl::MutexLock lock(&mutex_);
    return pulls_;
  }
  void AwaitPulls(int count) {
    absl::MutexLock lock(&mutex_);
    while (pulls_ < count) changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(2));
  }

 private:
  const std::vector<uint32_t> blocks_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::map<uint32_t, std::string> weights_;
  std::map<uint32_t, blocks::Coding> codings_;
  uint64_t version_ = 0;
  int pulls_ = 0;
  std::vector<v1::LoadRequest> loads_;
  std::set<uint32_t> pulled_;  // blocks
  std::vector<v1::PushRequest> pushes_;
};

std::unique_ptr<GrpcServer> Serve(grpc::Service* service) {
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {service};
  auto server = GrpcServer::Start(options);
  EXPECT_OK(server);
  return *std::move(server);
}

std::string BytesOf(const std::vector<uint32_t>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t)};
}

std::vector<uint32_t> Ids(uint64_t key, uint32_t count) {
  std::vector<uint32_t> ids(count);
  for (uint32_t i = 0; i < count; ++i) ids[i] = Philox(key)(0, i)[0] % kVocab;
  return ids;
}

class PhaseSeatTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kEpoch = 4, kSeed = 77;

  PhaseSeatTest() {
    Plan(TinyModel());
    for (int i = 0; i < 2; ++i) {
      const std::vector<uint32_t> shard_of = blocks::PlaceBlocks(*blocks_, optimizer_, 2);
      std::vector<uint32_t> held;
      for (uint32_t block = 0; block < shard_of.size(); ++block) {
        if (static_cast<int>(shard_of[block]) == i) held.push_back(block);
      }
      EXPECT_GT(held.size(), 5u);
      shards_.push_back(std::make_unique<PretendedShard>(held));
      servers_.push_back(Serve(shards_.back().get()));
      addresses_.push_back(servers_.back()->address());
      for (const uint32_t block : held) home_[block] = shards_.back().get();
    }
    UseWeights(1);
  }

  // The model's table, as a PLAN gives it.
  void Plan(const v1::ModelSpec& spec) {
    spec_ = spec;
    auto network = model::CreateNetwork(spec, kVocab);
    ASSERT_OK(network);
    network_ = *std::move(network);
    PhaseSeat seat(&compute_);
    v1::WorkUnit unit = Unit(v1::WorkUnit::PLAN);
    unit.mutable_context()->clear_table();
    unit.mutable_context()->clear_shard_addresses();
    ASSERT_OK(seat.Do(unit, &plan_));
    auto table = blocks::BlockTable::Create(plan_.table());
    ASSERT_OK(table);
    blocks_ = std::make_unique<blocks::BlockTable>(*std::move(table));
  }

  // The shards' weights become random ones.
  void UseWeights(uint64_t key) {
    weights_.assign(static_cast<size_t>(network_->tensors().floats()), 0.0f);
    for (const model::TensorSpec& tensor : network_->tensors().tensors()) {
      for (int64_t i = 0; i < tensor.size; ++i) {
        const auto at = static_cast<size_t>(tensor.offset + i);
        weights_[at] = 0.4f * (2 * UniformFloat(Philox(key)(7, at)[0]) - 1);
      }
    }
    for (const blocks::Block& block : blocks_->blocks()) {
      home_[block.index]->Set(block.index, {reinterpret_cast<const char*>(In(weights_, block)),
                                            static_cast<size_t>(block.size) * sizeof(float)});
    }
  }
  const float* In(const std::vector<float>& memory, const blocks::Block& block) const {
    return memory.data() + network_->tensors()[static_cast<int>(block.tensor)].offset + block.begin;
  }

  v1::PhaseContext Context(uint64_t epoch = kEpoch) const {
    v1::PhaseContext context;
    context.set_epoch(epoch);
    context.set_job_id("job");
    context.mutable_phase()->set_name("pretrain");
    context.set_seed(kSeed);
    context.set_phase_index(1);
    *context.mutable_model() = spec_;
    context.set_vocab_size(kVocab);
    context.mutable_phase()->set_objective("causal_lm");
    *context.mutable_phase()->mutable_optimizer() = optimizer_;
    *context.mutable_table() = plan_.table();
    for (const std::string& address : addresses_) context.add_shard_addresses(address);
    return context;
  }
  v1::WorkUnit Unit(v1::WorkUnit::Kind kind, uint64_t version = 0) const {
    v1::WorkUnit unit;
    unit.set_kind(kind);
    unit.set_epoch(kEpoch);
    unit.set_version(version);
    unit.set_unit(3);
    *unit.mutable_context() = Context();
    unit.set_loss_denominator(64);
    return unit;
  }
  static void AddMicrobatch(uint32_t index, uint32_t rows, uint32_t columns, v1::WorkUnit* unit) {
    v1::Microbatch& microbatch = *unit->add_microbatches();
    microbatch.set_index(index);
    microbatch.set_rows(rows);
    microbatch.set_columns(columns);
    microbatch.set_tokens(BytesOf(Ids(index, rows * columns)));
  }
  v1::WorkUnit TrainUnit(uint64_t version = 0) const {
    v1::WorkUnit unit = Unit(v1::WorkUnit::TRAIN, version);
    AddMicrobatch(6, 2, 11, &unit);
    AddMicrobatch(7, 3, 8, &unit);
    return unit;
  }

  // What the unit's gradients and loss are, without dropout.
  double Direct(const v1::WorkUnit& unit, std::vector<float>* gradients) const {
    gradients->assign(weights_.size(), 0.0f);
    double loss = 0;
    for (const v1::Microbatch& microbatch : unit.microbatches()) {
      const std::vector<uint32_t> ids = Ids(microbatch.index(), microbatch.rows() * microbatch.columns());
      model::CausalLm objective =
          *model::CausalLm::Create(network_.get(), &compute_, microbatch.rows() * (microbatch.columns() - 1),
                                   microbatch.columns() - 1, /*for_training=*/true);
      const auto sum = objective.Gradients(weights_.data(), {ids.data(), microbatch.rows(), microbatch.columns()}, {},
                                           static_cast<float>(1 / unit.loss_denominator()), &NothingToWaitFor,
                                           gradients->data(), &NothingToWaitFor);
      EXPECT_OK(sum);
      loss += *sum;
    }
    return loss;
  }
  // In the order in which each shard got them.
  std::vector<v1::PushRequest> TakePushes() {
    std::vector<v1::PushRequest> pushes;
    for (const auto& shard : shards_) {
      for (v1::PushRequest& push : shard->TakePushes()) pushes.push_back(std::move(push));
    }
    return pushes;
  }

  const kernels::Compute compute_{kernels::DetectIsa(), 2};
  v1::ModelSpec spec_;
  v1::OptimizerSpec optimizer_;
  std::unique_ptr<model::Network> network_;
  v1::WorkResult plan_;
  std::unique_ptr<blocks::BlockTable> blocks_;
  std::vector<std::unique_ptr<PretendedShard>> shards_;
  std::vector<std::unique_ptr<GrpcServer>> servers_;
  std::vector<std::string> addresses_;
  std::map<uint32_t, PretendedShard*> home_;
  std::vector<float> weights_;
  v1::WorkResult result_;
};

// ---- planning and the start ----

TEST_F(PhaseSeatTest, APlanIsTheModelsTableAndItsFiles) {
  const absl::Span<const model::TensorSpec> tensors = network_->tensors().tensors();
  ASSERT_EQ(plan_.table().tensors_size(), static_cast<int>(tensors.size()));
  for (int i = 0; i < plan_.table().tensors_size(); ++i) {
    const v1::Tensor& tensor = plan_.table().tensors(i);
    const model::TensorSpec& spec = tensors[static_cast<size_t>(i)];
    EXPECT_EQ(tensor.name(), spec.name);
    EXPECT_EQ(std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end()), spec.shape) << spec.name;
    EXPECT_TRUE(tensor.trainable()) << spec.name;
    EXPECT_EQ(tensor.group(), spec.group) << spec.name;
    const bool matrix = spec.name.find(".h.") != std::string::npos && spec.shape.size() == 2;
    EXPECT_EQ(tensor.role(), matrix                   ? v1::Tensor::MATRIX
                             : spec.shape.size() == 2 ? v1::Tensor::EMBEDDING
                                                      : v1::Tensor::VECTOR)
        << spec.name;
    EXPECT_EQ(tensor.rows_are_inputs(), matrix) << spec.name;  // GPT-2's Conv1D
  }
  ASSERT_EQ(plan_.files().size(), 2u);
  const auto config = model::ParseConfig(plan_.files().at("config.json"), "config.json");
  ASSERT_OK(config);
  EXPECT_EQ(config->spec.SerializeAsString(), spec_.SerializeAsString());
  EXPECT_EQ(config->vocab_size, kVocab);
  EXPECT_TRUE(plan_.files().contains("generation_config.json"));
  // A model that cannot be is nobody's.
  v1::WorkUnit unit = Unit(v1::WorkUnit::PLAN);
  unit.mutable_context()->mutable_model()->set_heads(5);
  PhaseSeat seat(&compute_);
  EXPECT_EQ(seat.Do(unit, &result_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PhaseSeatTest, InitializeLoadsEveryBlockWithItsStartValues) {
  PhaseSeat seat(&compute_);
  ASSERT_OK(seat.Do(Unit(v1::WorkUnit::INITIALIZE), &result_));
  std::set<uint32_t> loaded;
  for (const auto& shard : shards_) {
    for (const v1::LoadRequest& load : shard->loads()) {
      EXPECT_TRUE(loaded.insert(load.block()).second) << load.block();
      EXPECT_EQ(home_[load.block()], shard.get());
      EXPECT_EQ(load.version(), 0u);
      EXPECT_EQ(load.epoch(), kEpoch);
      EXPECT_TRUE(load.state().empty());
      EXPECT_FALSE(load.has_coding());
      // The whole tensor at once, of which the block is a part.
      const blocks::Block& block = blocks_->blocks()[load.block()];
      const int index = static_cast<int>(block.tensor);
      std::vector<float> whole(static_cast<size_t>(network_->tensors()[index].size));
      model::StartValues(network_->tensors()[index], index, kSeed, 0, absl::MakeSpan(whole));
      ASSERT_EQ(load.weights().size(), static_cast<size_t>(block.size) * 4);
      EXPECT_EQ(0, std::memcmp(load.weights().data(), whole.data() + block.begin, load.weights().size()))
          << blocks_->Name(block);
    }
  }
  EXPECT_EQ(loaded.size(), blocks_->blocks().size());
}

// ---- training ----

TEST_F(PhaseSeatTest, TrainingPushesTheSumOfItsMicrobatches) {
  // Every width, fine and coarse; the last block's range is too small for its gradient.
  for (const blocks::Block& block : blocks_->blocks()) {
    switch (block.index % 3) {
      case 0:
        break;  // none is sent: as at the start
      case 1:
        home_[block.index]->SetCoding(block.index, {16, -15});
        break;
      case 2:
        home_[block.index]->SetCoding(block.index, {32, -34});
        break;
    }
  }
  const uint32_t last = static_cast<uint32_t>(blocks_->blocks().size()) - 1;
  home_[last]->SetCoding(last, {16, -40});
  for (const auto& shard : shards_) shard->SetVersion(12);

  PhaseSeat seat(&compute_);
  const v1::WorkUnit unit = TrainUnit(12);
  ASSERT_OK(seat.Do(unit, &result_));
  std::vector<float> gradients;
  const double loss = Direct(unit, &gradients);
  EXPECT_EQ(result_.loss_sum(), loss);
  EXPECT_EQ(result_.predictions(), 2u * 10 + 3 * 7);

  // Each matrix element is a multiplication and an addition in the forward pass and in both products of the backward
  // one; attention is two products of a row with a matrix [columns, hidden_size] a layer.
  double matrices = 0;
  for (const blocks::TensorInfo& tensor : blocks_->tensors()) {
    const bool position = absl::StrContains(tensor.name, "wpe");
    if (tensor.shape.size() == 2 && !position) matrices += static_cast<double>(tensor.size);
  }
  double flops = 0;
  for (const v1::Microbatch& microbatch : unit.microbatches()) {
    const double columns = microbatch.columns() - 1;
    flops += microbatch.rows() * columns *
             (6 * matrices + 12.0 * Context().model().layers() * Context().model().hidden_size() * columns);
  }
  EXPECT_EQ(seat.model_flops(), flops);
  EXPECT_EQ(seat.precision(), kernels::Precision::kF32);

  std::set<uint32_t> pushed;
  uint64_t saturated = 0;
  std::map<PretendedShard*, uint32_t> last_group;
  for (const v1::PushRequest& push : TakePushes()) {
    ASSERT_LT(push.block(), blocks_->blocks().size());
    const blocks::Block& block = blocks_->blocks()[push.block()];
    const std::string name = blocks_->Name(block);
    EXPECT_TRUE(pushed.insert(push.block()).second) << name << " was pushed twice";
    EXPECT_EQ(push.epoch(), kEpoch);
    EXPECT_EQ(push.version(), 12u);
    EXPECT_EQ(push.unit(), 3u);
    EXPECT_EQ(push.crc32c(), Crc32c(push.values().data(), push.values().size()));
    // Later layers first.
    PretendedShard* const home = home_[push.block()];
    const auto before = last_group.emplace(home, block.group).first;
    EXPECT_LE(block.group, before->second) << name;
    before->second = block.group;

    const uint32_t bits = push.block() == last ? 16 : push.block() % 3 == 0 ? 64 : push.block() % 3 == 1 ? 16 : 32;
    const int exponent = push.block() == last    ? -40
                         : push.block() % 3 == 0 ? blocks::kStartExponent
                         : push.block() % 3 == 1 ? -15
                                                 : -34;
    ASSERT_EQ(push.coding().bits(), bits) << name;
    ASSERT_EQ(push.coding().exponent(), exponent) << name;
    ASSERT_EQ(push.values().size(), static_cast<size_t>(block.size) * bits / 8) << name;
    const double limit = bits == 64 ? std::ldexp(1, 43) : std::ldexp(1, static_cast<int>(bits) - 1) - 1;
    uint64_t beyond = 0;
    for (int64_t i = 0; i < block.size; ++i) {
      int64_t integer = 0;
      std::memcpy(&integer, push.values().data() + static_cast<size_t>(i) * bits / 8, bits / 8);
      integer = integer << (64 - bits) >> (64 - bits);  // its sign
      const double value = std::ldexp(static_cast<double>(In(gradients, block)[i]), -exponent);
      if (std::fabs(value) > limit) {
        ++beyond;
        ASSERT_EQ(static_cast<double>(integer), std::copysign(limit, value)) << name << " " << i;
      } else {
        ASSERT_LE(std::fabs(static_cast<double>(integer) - value), 0.5) << name << " " << i;
      }
    }
    EXPECT_EQ(push.saturated(), beyond) << name;
    saturated += beyond;
  }
  EXPECT_EQ(pushed.size(), blocks_->blocks().size());
  EXPECT_GT(saturated, 0u);
}

TEST_F(PhaseSeatTest, GradientsDependOnSeedPhaseStepAndMicrobatchAlone) {
  v1::ModelSpec spec = TinyModel();
  spec.set_dropout(0.2);
  Plan(spec);
  UseWeights(1);
  const auto values = [&](const v1::WorkUnit& unit, PhaseSeat* seat) {
    EXPECT_OK(seat->Do(unit, &result_));
    std::map<uint32_t, std::string> values;
    for (const v1::PushRequest& push : TakePushes()) values[push.block()] = push.values();
    EXPECT_EQ(values.size(), blocks_->blocks().size());
    return values;
  };
  v1::WorkUnit unit = Unit(v1::WorkUnit::TRAIN);
  AddMicrobatch(6, 2, 11, &unit);
  PhaseSeat seat(&compute_);
  const auto expected = values(unit, &seat);
  EXPECT_EQ(values(unit, &seat), expected);
  {
    // Another worker, under another number of the unit, with one thread of the plainest kind.
    const kernels::Compute scalar(kernels::Isa::kScalar, 1);
    PhaseSeat other(&scalar);
    v1::WorkUnit renumbered = unit;
    renumbered.set_unit(9);
    EXPECT_EQ(values(renumbered, &other), expected);
  }
  v1::WorkUnit changed = unit;
  changed.mutable_microbatches(0)->set_index(5);
  EXPECT_NE(values(changed, &seat), expected);
  for (const auto& shard : shards_) shard->SetVersion(1);
  changed = unit;
  changed.set_version(1);
  EXPECT_NE(values(changed, &seat), expected);
  for (const auto& shard : shards_) shard->SetVersion(0);
  for (const bool seed : {false, true}) {
    changed = unit;
    if (seed) {
      changed.mutable_context()->set_seed(kSeed + 1);
    } else {
      changed.mutable_context()->set_phase_index(2);
    }
    PhaseSeat other(&compute_);
    EXPECT_NE(values(changed, &other), expected) << seed;
  }
}

TEST_F(PhaseSeatTest, FetchesAVersionOnce) {
  PhaseSeat seat(&compute_);
  std::vector<float> gradients;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(seat.Do(TrainUnit(), &result_));
  }
  EXPECT_EQ(shards_[0]->pulls(), 1);
  const double before = result_.loss_sum();
  EXPECT_EQ(before, Direct(TrainUnit(), &gradients));
  // Version 0 has passed: what is held still serves it; the next version is fetched.
  UseWeights(2);
  for (const auto& shard : shards_) shard->SetVersion(1);
  ASSERT_OK(seat.Do(TrainUnit(), &result_));
  EXPECT_EQ(result_.loss_sum(), before);
  ASSERT_OK(seat.Do(TrainUnit(1), &result_));
  EXPECT_EQ(result_.loss_sum(), Direct(TrainUnit(1), &gradients));
  EXPECT_NE(result_.loss_sum(), before);
  EXPECT_EQ(shards_[0]->pulls(), 2);
  // A fetch that failed left nothing that would be taken for a version.
  EXPECT_EQ(seat.Do(TrainUnit(0), &result_).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(seat.Do(TrainUnit(1), &result_));
  EXPECT_EQ(result_.loss_sum(), Direct(TrainUnit(1), &gradients));
}

TEST_F(PhaseSeatTest, AGradientThatIsNotFiniteIsNobodys) {
  const int index = network_->tensors().Find("transformer.h.1.ln_2.weight");
  const uint32_t block = blocks_->tensors()[static_cast<size_t>(index)].first_block;
  std::vector<float> gains(24, 1.0f);
  gains[5] = NAN;
  home_[block]->Set(block, {reinterpret_cast<const char*>(gains.data()), 24 * sizeof(float)});
  for (const auto& shard : shards_) shard->SetVersion(41);
  PhaseSeat seat(&compute_);
  const absl::Status done = seat.Do(TrainUnit(41), &result_);
  EXPECT_EQ(done.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(done.GetPayload(kNotFinite).has_value());
  EXPECT_THAT(std::string(done.message()), AllOf(HasSubstr("not finite"), HasSubstr("step 42"), HasSubstr("pretrain")));
  // The seat is as good as before.
  UseWeights(1);
  for (const auto& shard : shards_) shard->SetVersion(42);
  EXPECT_OK(seat.Do(TrainUnit(42), &result_));
}

// ---- evaluating ----

TEST_F(PhaseSeatTest, EvaluationIsTheLossOfWhatIsScored) {
  PhaseSeat seat(&compute_);
  v1::WorkUnit unit = Unit(v1::WorkUnit::EVALUATE);
  AddMicrobatch(0, 2, 11, &unit);
  AddMicrobatch(1, 3, 8, &unit);
  AddMicrobatch(2, 1, 2, &unit);
  unit.mutable_microbatches(1)->set_first_scored_column(4);
  double expected = 0;
  for (const v1::Microbatch& microbatch : unit.microbatches()) {
    const std::vector<uint32_t> ids = Ids(microbatch.index(), microbatch.rows() * microbatch.columns());
    const int64_t columns = microbatch.columns() - 1;
    model::CausalLm objective = *model::CausalLm::Create(network_.get(), &compute_, microbatch.rows() * columns,
                                                         columns, /*for_training=*/false);
    std::vector<float> log_probabilities(microbatch.rows() * static_cast<size_t>(columns));
    ASSERT_OK(objective.Loss(weights_.data(), {ids.data(), microbatch.rows(), microbatch.columns()}, &NothingToWaitFor,
                             log_probabilities.data()));
    for (size_t i = 0; i < log_probabilities.size(); ++i) {
      if (static_cast<int64_t>(i) % columns < microbatch.first_scored_column()) continue;
      expected -= static_cast<double>(log_probabilities[i]);
    }
  }
  // Before and after a training unit, whose memory serves evaluation too; dropout has no part in it.
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(seat.Do(unit, &result_));
    EXPECT_NEAR(result_.loss_sum(), expected, 1e-9);
    EXPECT_EQ(result_.predictions(), 2u * 10 + 3 * (7 - 4) + 1);
    EXPECT_TRUE(TakePushes().empty());
    ASSERT_OK(seat.Do(TrainUnit(), &result_));
    TakePushes();
  }
  unit.mutable_microbatches(1)->set_first_scored_column(7);
  EXPECT_EQ(seat.Do(unit, &result_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PhaseSeatTest, AUnitInWhichNothingCountsGivesTheShardsItsZeros) {
  PhaseSeat seat(&compute_);
  ASSERT_OK(seat.Do(TrainUnit(), &result_));
  const size_t blocks = TakePushes().size();
  v1::WorkUnit unit = TrainUnit();
  for (v1::Microbatch& microbatch : *unit.mutable_microbatches()) {
    microbatch.set_scored(std::string(size_t{microbatch.rows()} * microbatch.columns(), '\0'));
  }
  ASSERT_OK(seat.Do(unit, &result_));
  EXPECT_EQ(result_.predictions(), 0u);
  EXPECT_EQ(result_.loss_sum(), 0);
  const std::vector<v1::PushRequest> pushes = TakePushes();
  EXPECT_EQ(pushes.size(), blocks);
  for (const v1::PushRequest& push : pushes) {
    EXPECT_EQ(push.values(), std::string(push.values().size(), '\0')) << push.block();
  }
}

// ---- epochs ----

TEST_F(PhaseSeatTest, ALaterEpochEndsAUnitThatWaits) {
  for (const v1::WorkUnit::Kind kind : {v1::WorkUnit::TRAIN, v1::WorkUnit::EVALUATE}) {
    PhaseSeat seat(&compute_);
    v1::WorkUnit unit = TrainUnit(5);  // a version that lies ahead
    unit.set_kind(kind);
    const int pulls = shards_[0]->pulls();
    std::thread announcer([&] {
      shards_[0]->AwaitPulls(pulls + 1);
      seat.Announce(kEpoch);  // its own: nothing happens
      seat.Announce(kEpoch + 1);
    });
    const absl::Status done = seat.Do(unit, &result_);
    announcer.join();
    EXPECT_EQ(done.code(), absl::StatusCode::kFailedPrecondition) << done;
    EXPECT_THAT(std::string(done.message()), HasSubstr("epoch 4 has passed"));
    // So do later units of the passed epoch, without asking the shards.
    const int asked = shards_[0]->pulls();
    EXPECT_EQ(seat.Do(TrainUnit(), &result_).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(shards_[0]->pulls(), asked);
    EXPECT_TRUE(TakePushes().empty());
    // The next epoch's are done.
    v1::WorkUnit next = TrainUnit();
    next.set_epoch(kEpoch + 1);
    *next.mutable_context() = Context(kEpoch + 1);
    EXPECT_OK(seat.Do(next, &result_));
    for (const v1::PushRequest& push : TakePushes()) EXPECT_EQ(push.epoch(), kEpoch + 1);
    // An older announcement that comes late changes nothing.
    seat.Announce(kEpoch - 1);
    EXPECT_OK(seat.Do(next, &result_));
    TakePushes();
  }
}

TEST_F(PhaseSeatTest, LeavingEndsAUnitThatWaits) {
  PhaseSeat seat(&compute_);
  std::thread leaver([&] {
    shards_[1]->AwaitPulls(1);
    seat.Leave();
  });
  EXPECT_EQ(seat.Do(TrainUnit(5), &result_).code(), absl::StatusCode::kCancelled);
  leaver.join();
  EXPECT_EQ(seat.Do(TrainUnit(), &result_).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(seat.Do(Unit(v1::WorkUnit::PLAN), &result_).code(), absl::StatusCode::kCancelled);
}

TEST_F(PhaseSeatTest, AnEpochsFirstUnitBringsItsContext) {
  PhaseSeat seat(&compute_);
  v1::WorkUnit bare = TrainUnit();
  bare.clear_context();
  EXPECT_EQ(seat.Do(bare, &result_).code(), absl::StatusCode::kFailedPrecondition);
  v1::WorkUnit mistaken = TrainUnit();
  mistaken.mutable_context()->set_epoch(kEpoch + 1);
  EXPECT_EQ(seat.Do(mistaken, &result_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_OK(seat.Do(TrainUnit(), &result_));
  EXPECT_OK(seat.Do(bare, &result_));
  bare.set_epoch(kEpoch + 1);
  EXPECT_EQ(seat.Do(bare, &result_).code(), absl::StatusCode::kFailedPrecondition);
  // The former epoch's context went with it.
  bare.set_epoch(kEpoch);
  EXPECT_EQ(seat.Do(bare, &result_).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PhaseSeatTest, WhatIsFrozenAndKnownIsFetchedOnce) {
  PhaseSeat seat(&compute_);
  // Blocks that are fetched in an epoch of its own by a model that began with `content`.
  const auto fetched = [&](uint64_t epoch, const std::string& content, const std::string& frozen) {
    v1::WorkUnit unit = Unit(v1::WorkUnit::PLAN);
    v1::PhaseContext& context = *unit.mutable_context();
    unit.set_epoch(epoch);
    context.set_epoch(epoch);
    context.mutable_phase()->mutable_trainable()->add_freeze(frozen);
    if (!content.empty()) (*context.mutable_contents())[""] = content;
    context.clear_shard_addresses();
    v1::WorkResult plan;
    EXPECT_OK(PhaseSeat(&compute_).Do(unit, &plan));
    *context.mutable_table() = plan.table();
    for (const std::string& address : addresses_) context.add_shard_addresses(address);
    unit.set_kind(v1::WorkUnit::EVALUATE);
    AddMicrobatch(0, 1, 8, &unit);
    EXPECT_OK(seat.Do(unit, &result_));
    std::set<uint32_t> blocks = shards_[0]->TakePulled();
    blocks.merge(shards_[1]->TakePulled());
    return blocks.size();
  };
  const size_t all = fetched(11, "a", "transformer.h.0.*");
  const size_t some = fetched(12, "a", "transformer.h.0.*");
  EXPECT_GT(some, 0u);
  EXPECT_LT(some, all);
  EXPECT_EQ(fetched(13, "b", "transformer.h.0.*"), all);
  EXPECT_EQ(fetched(14, "b", "transformer.h.1.*"), all) << "others are frozen";
  EXPECT_EQ(fetched(15, "", "transformer.h.1.*"), all) << "nothing is said";
  EXPECT_EQ(fetched(16, "", "transformer.h.1.*"), all);
}

TEST_F(PhaseSeatTest, AShardThatIsGoneMayComeBack) {
  PhaseSeat seat(&compute_);
  ASSERT_OK(seat.Do(TrainUnit(), &result_));
  servers_[1].reset();
  for (const auto& shard : shards_) shard->SetVersion(1);
  const absl::Status done = seat.Do(TrainUnit(1), &result_);
  EXPECT_EQ(done.code(), absl::StatusCode::kUnavailable) << done;
  EXPECT_THAT(std::string(done.message()), HasSubstr(addresses_[1]));
}

// ---- what nobody can do ----

TEST_F(PhaseSeatTest, RefusesSequencesThatBeginWhereNoneCan) {
  PhaseSeat seat(&compute_);
  const auto refusal = [&](const std::vector<uint32_t>& first_starts, size_t scored) {
    v1::WorkUnit unit = TrainUnit();
    v1::Microbatch& microbatch = *unit.mutable_microbatches(0);
    const size_t count = size_t{microbatch.rows()} * microbatch.columns();
    if (!first_starts.empty()) {
      std::vector<uint32_t> starts(count);  // each row is one sequence
      std::copy(first_starts.begin(), first_starts.end(), starts.begin());
      microbatch.set_starts(starts.data(), (count - (first_starts.size() == 1 ? 1 : 0)) * sizeof(uint32_t));
    }
    if (scored > 0) microbatch.set_scored(std::string(scored, '\1'));
    const absl::Status done = seat.Do(unit, &result_);
    EXPECT_EQ(done.code(), absl::StatusCode::kInvalidArgument) << done;
    return std::string(done.message());
  };
  EXPECT_THAT(refusal({0, 2, 2}, 0), HasSubstr("a token of column 1 cannot be of a sequence that begins in column 2"));
  EXPECT_THAT(refusal({0, 1, 0}, 0), HasSubstr("a token of column 2 cannot be of a sequence that begins in column 0"));
  EXPECT_THAT(refusal({0}, 0), HasSubstr("bytes of starts where"));
  EXPECT_THAT(refusal({}, 1), HasSubstr("1 bytes of scored where"));
  EXPECT_OK(seat.Do(TrainUnit(), &result_));
}

TEST_F(PhaseSeatTest, RefusesGarbageAndGoesOn) {
  PhaseSeat seat(&compute_);
  const auto refused = [&](const std::function<void(v1::WorkUnit*)>& change, const std::string& says,
                           absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    v1::WorkUnit unit = TrainUnit();
    change(&unit);
    for (const v1::WorkUnit::Kind kind : {v1::WorkUnit::TRAIN, v1::WorkUnit::EVALUATE}) {
      unit.set_kind(kind);
      const absl::Status done = seat.Do(unit, &result_);
      EXPECT_EQ(done.code(), code) << says << ": " << done;
      EXPECT_THAT(std::string(done.message()), HasSubstr(says));
    }
  };
  const auto in_second = [](const std::function<void(v1::Microbatch*)>& change) {
    return [change](v1::WorkUnit* unit) { change(unit->mutable_microbatches(1)); };
  };
  refused(in_second([](auto* m) { m->mutable_tokens()->pop_back(); }), "95 bytes");
  refused(in_second([](auto* m) { m->clear_tokens(); }), "0 bytes");
  refused(in_second([](auto* m) { m->set_rows(0); }), "0 x 8");
  refused(in_second([](auto* m) { m->set_rows(4'294'967'295); }), "bytes where");
  refused(in_second([](auto* m) {
            m->set_rows(24);
            m->set_columns(1);
          }),
          "predicts nothing");
  refused(in_second([](auto* m) {
            m->set_rows(2);
            m->set_columns(12);
          }),
          "context is 10");
  // Would take terabytes of attention if it were believed.
  refused(in_second([](auto* m) {
            m->set_rows(1);
            m->set_columns(1 << 22);
            m->set_tokens(std::string(4 << 22, '\0'));
          }),
          "context is 10");
  refused(in_second([](auto* m) { m->mutable_tokens()->replace(40, 4, "\xff\xff\xff\xff"); }), "4294967295");
  refused(in_second([](auto* m) { m->set_tokens(std::string(96, '\xff')); }), "4294967295");
  refused(in_second([](auto* m) { m->set_index(1 << 20); }), "microbatch 1048576");
  refused([](v1::WorkUnit* unit) { unit->clear_microbatches(); }, "without microbatches");
  refused([](v1::WorkUnit* unit) { unit->set_loss_denominator(0); }, "predictions");
  refused([](v1::WorkUnit* unit) { unit->set_loss_denominator(NAN); }, "predictions");

  v1::WorkUnit unit = TrainUnit();
  unit.set_kind(static_cast<v1::WorkUnit::Kind>(99));
  EXPECT_EQ(seat.Do(unit, &result_).code(), absl::StatusCode::kInvalidArgument);
  TakePushes();
  EXPECT_OK(seat.Do(TrainUnit(), &result_));
  EXPECT_EQ(TakePushes().size(), blocks_->blocks().size());
}

TEST_F(PhaseSeatTest, MemoryThatIsNotThereMayBeElsewhere) {
  constexpr uint32_t kHidden = 8192;
  const uint64_t layers = MemoryLimit() / sizeof(float) / (4 * uint64_t{kHidden} * kHidden) + 1;
  v1::PhaseContext context = Context();
  context.mutable_model()->set_hidden_size(kHidden);
  context.mutable_model()->set_layers(static_cast<uint32_t>(layers));
  // Made where there are no shards yet, and small enough for the worker.
  PhaseSeat seat(&compute_);
  v1::WorkUnit unit = Unit(v1::WorkUnit::PLAN);
  *unit.mutable_context() = context;
  unit.mutable_context()->clear_shard_addresses();
  absl::Status done = seat.Do(unit, &result_);
  ASSERT_OK(done);
  *context.mutable_table() = result_.table();
  unit = TrainUnit();
  *unit.mutable_context() = context;
  unit.mutable_context()->set_epoch(kEpoch + 1);
  unit.set_epoch(kEpoch + 1);
  done = seat.Do(unit, &result_);
  EXPECT_EQ(done.code(), absl::StatusCode::kResourceExhausted) << done;
  EXPECT_THAT(std::string(done.message()), HasSubstr("the weights of the phase's models: out of memory"));

  // A pass that is too large, of a model that is not.
  constexpr uint32_t kLarge = 1024;
  context = Context();
  context.mutable_model()->set_context(kLarge);
  context.mutable_model()->set_heads(24);
  context.mutable_model()->set_kv_heads(24);
  unit = Unit(v1::WorkUnit::PLAN);
  *unit.mutable_context() = context;
  unit.mutable_context()->clear_shard_addresses();
  PhaseSeat other(&compute_);
  ASSERT_OK(other.Do(unit, &result_));
  *context.mutable_table() = result_.table();
  unit = Unit(v1::WorkUnit::TRAIN);
  *unit.mutable_context() = context;
  unit.mutable_context()->set_epoch(kEpoch + 1);
  unit.set_epoch(kEpoch + 1);
  const auto rows = static_cast<uint32_t>(MemoryLimit() / sizeof(float) / (2 * 24 * kLarge * kLarge) + 1);
  AddMicrobatch(0, rows, kLarge + 1, &unit);
  done = other.Do(unit, &result_);
  EXPECT_EQ(done.code(), absl::StatusCode::kResourceExhausted) << done;
  EXPECT_THAT(std::string(done.message()), HasSubstr("a smaller phases.microbatch needs less"));
}

TEST_F(PhaseSeatTest, RefusesAContextThatDoesNotFit) {
  const auto refused = [&](const std::function<void(v1::PhaseContext*)>& change) {
    PhaseSeat seat(&compute_);
    v1::WorkUnit unit = TrainUnit();
    change(unit.mutable_context());
    const absl::Status done = seat.Do(unit, &result_);
    EXPECT_TRUE(TakePushes().empty());
    // The next epoch's may.
    v1::WorkUnit next = TrainUnit();
    next.set_epoch(kEpoch + 1);
    *next.mutable_context() = Context(kEpoch + 1);
    EXPECT_OK(seat.Do(next, &result_));
    TakePushes();
    return done;
  };
  EXPECT_EQ(refused([](v1::PhaseContext* context) { context->mutable_phase()->set_objective("telepathy"); }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](v1::PhaseContext* context) { context->mutable_model()->set_family("rwkv"); }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](v1::PhaseContext* context) { context->set_vocab_size(0); }).code(),
            absl::StatusCode::kInvalidArgument);
  // The coordinator's table is another build's.
  EXPECT_EQ(
      refused([](v1::PhaseContext* context) { context->mutable_table()->mutable_tensors(2)->set_group(0); }).code(),
      absl::StatusCode::kInternal);
  EXPECT_EQ(refused([](v1::PhaseContext* context) { context->clear_shard_addresses(); }).code(),
            absl::StatusCode::kFailedPrecondition);
}

// ---- real shards ----

struct RealShard {
  Metrics registry;
  ps::ShardMetrics metrics{&registry};
  ps::ParameterService service{1, &metrics};
  std::unique_ptr<GrpcServer> server = Serve(&service);

  ~RealShard() {
    service.Close();
    server->Shutdown(absl::ZeroDuration());
  }
};

class TrainsAgainstShards : public PhaseSeatTest, public ::testing::WithParamInterface<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(WeightBits, TrainsAgainstShards, ::testing::Values(16u, 32u),
                         [](const auto& info) { return absl::StrCat(info.param); });

TEST_P(TrainsAgainstShards, AsWithoutThem) {
  RealShard real[2];
  addresses_ = {real[0].server->address(), real[1].server->address()};
  optimizer_.set_type("sgd");
  optimizer_.set_lr(0.5);
  for (const double beta : {0.9, 0.95}) optimizer_.add_betas(beta);
  optimizer_.set_epsilon(1e-8);
  optimizer_.set_momentum(0.95);
  optimizer_.set_muon_lr(0.02);
  optimizer_.set_muon_iterations(5);
  optimizer_.set_schedule("constant");
  optimizer_.set_gradient_bits(16);
  optimizer_.set_weight_bits(GetParam());
  client::ShardGroup group(kEpoch, addresses_);
  group.Place(blocks_.get(), optimizer_);
  v1::ConfigureRequest configure;
  configure.set_job_id("job");
  configure.set_phase("pretrain");
  *configure.mutable_table() = plan_.table();
  *configure.mutable_optimizer() = optimizer_;
  configure.set_max_steps(10);
  configure.set_units_per_step(2);
  ASSERT_OK(group.Configure(configure));

  PhaseSeat seats[2] = {PhaseSeat(&compute_), PhaseSeat(&compute_)};
  // A second initialisation does no harm.
  for (PhaseSeat& seat : seats) {
    ASSERT_OK(seat.Do(Unit(v1::WorkUnit::INITIALIZE), &result_));
  }
  model::StartWeights(network_->tensors(), kSeed, weights_.data());
  if (GetParam() == 16) kernels::KeepBf16(weights_.data(), network_->tensors().floats());
  v1::WorkUnit evaluation = Unit(v1::WorkUnit::EVALUATE);
  AddMicrobatch(0, 2, 11, &evaluation);
  AddMicrobatch(1, 2, 11, &evaluation);
  std::vector<float> gradients;
  const absl::Status evaluated = seats[0].Do(evaluation, &result_);
  ASSERT_OK(evaluated);
  EXPECT_EQ(result_.loss_sum(), Direct(evaluation, &gradients));
  double loss = result_.loss_sum();
  for (uint64_t version = 0; version < 3; ++version) {
    // Each worker trains one of the two microbatches that are evaluated.
    std::vector<double> sum(weights_.size(), 0);
    for (uint32_t i = 0; i < 2; ++i) {
      v1::WorkUnit unit = Unit(v1::WorkUnit::TRAIN, version);
      unit.set_unit(i);
      unit.set_loss_denominator(40);
      AddMicrobatch(i, 2, 11, &unit);
      ASSERT_OK(seats[i].Do(unit, &result_));
      EXPECT_EQ(result_.loss_sum(), Direct(unit, &gradients));
      for (size_t at = 0; at < sum.size(); ++at) sum[at] += static_cast<double>(gradients[at]);
    }
    v1::NormsRequest of_version;
    of_version.set_version(version);
    const auto norms = group.Norms(of_version);
    ASSERT_OK(norms);
    double squared = 0, expected = 0;
    for (const double norm : norms->squared) squared += norm;
    for (const double value : sum) expected += value * value;
    EXPECT_NEAR(squared, expected, 1e-3 * expected) << version;
    v1::CommitRequest commit;
    commit.set_version(version);
    commit.set_clip_factor(1);
    const auto committed = group.Commit(commit);
    ASSERT_OK(committed);
    // Both see the next version, whose loss is lower.
    evaluation.set_version(version + 1);
    double losses[2];
    for (int i = 0; i < 2; ++i) {
      ASSERT_OK(seats[i].Do(evaluation, &result_));
      losses[i] = result_.loss_sum();
    }
    EXPECT_EQ(losses[0], losses[1]);
    EXPECT_LT(losses[0], loss);
    loss = losses[0];
    for (size_t at = 0; at < weights_.size(); ++at) weights_[at] -= 0.5f * static_cast<float>(sum[at]);
    EXPECT_NEAR(loss, Direct(evaluation, &gradients), 1e-3 * loss) << version;
    // The direct course goes on from what the shards hold, bit for bit.
    const absl::Status pulled =
        group.Pull(version + 1, [&](uint32_t block, absl::string_view weights, const blocks::Coding&) {
          const blocks::Block& where = blocks_->blocks()[block];
          auto* const to = const_cast<float*>(In(weights_, where));
          if (GetParam() == 16) {
            kernels::WidenBf16(reinterpret_cast<const uint16_t*>(weights.data()), where.size, to);
          } else {
            std::memcpy(to, weights.data(), weights.size());
          }
          return absl::OkStatus();
        });
    ASSERT_OK(pulled);
    EXPECT_EQ(loss, Direct(evaluation, &gradients));
  }
}

}  // namespace
}  // namespace millrace::worker
