// Shards in this process, reached over gRPC, and a little model whose gradients are made up.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "client/shard_group.h"
#include "common/checksum.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/metrics.h"
#include "common/philox.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "ps/parameter_service.h"
#include "testing/status.h"

namespace millrace::ps {

inline std::string Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline std::vector<float> Floats(absl::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// In (-scale, scale), by key alone.
inline std::vector<float> Numbers(uint64_t key, uint64_t part, int64_t n, float scale) {
  std::vector<float> numbers(static_cast<size_t>(n));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = scale * (2.0f * UniformFloat(Philox(key)(part, i)[0]) - 1.0f);
  }
  return numbers;
}

inline v1::OptimizerSpec OptimizerOf(absl::string_view type) {
  v1::OptimizerSpec spec;
  spec.set_type(std::string(type));
  spec.set_lr(0.01);
  spec.add_betas(0.9);
  spec.add_betas(0.95);
  spec.set_epsilon(1e-8);
  spec.set_weight_decay(0.1);
  spec.set_momentum(0.95);
  spec.set_nesterov(true);
  spec.set_muon_lr(0.02);
  spec.set_muon_iterations(5);
  spec.set_schedule("cosine");
  spec.set_warmup_steps(2);
  spec.set_gradient_bits(16);
  return spec;
}

inline void AddTensor(absl::string_view name, std::vector<int64_t> shape, v1::Tensor::Role role, bool trainable,
                      uint32_t group, v1::TensorTable* table) {
  v1::Tensor& tensor = *table->add_tensors();
  tensor.set_name(std::string(name));
  for (const int64_t size : shape) tensor.add_shape(size);
  tensor.set_role(role);
  tensor.set_trainable(trainable);
  tensor.set_group(group);
}

// A tensor of several blocks of each kind, and a frozen one: about 470,000 parameters.
inline v1::TensorTable LittleTable() {
  v1::TensorTable table;
  AddTensor("embedding", {210, 400}, v1::Tensor::EMBEDDING, true, 0, &table);
  AddTensor("frozen", {70'000}, v1::Tensor::VECTOR, false, 0, &table);
  AddTensor("wide", {120, 1200}, v1::Tensor::MATRIX, true, 1, &table);
  AddTensor("gain", {33}, v1::Tensor::VECTOR, true, 1, &table);
  AddTensor("tall", {1200, 130}, v1::Tensor::MATRIX, true, 2, &table);
  table.mutable_tensors(4)->set_rows_are_inputs(true);
  AddTensor("bias", {1}, v1::Tensor::VECTOR, true, 3, &table);
  return table;
}

inline blocks::BlockTable BlocksOf(const v1::TensorTable& table) {
  auto blocks = blocks::BlockTable::Create(table);
  EXPECT_OK(blocks);
  return *std::move(blocks);
}

// One shard's service, served on a port of its own.
class ServedShard {
 public:
  explicit ServedShard(int threads = 1) : metrics_(&registry_), service_(threads, &metrics_) {
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    auto server = GrpcServer::Start(options);
    EXPECT_OK(server);
    server_ = *std::move(server);
    stub_ = v1::ParameterServer::NewStub(NewChannel(server_->address()));
  }
  ~ServedShard() {
    service_.Close();
    server_->Shutdown(absl::ZeroDuration());
  }

  const std::string& address() const { return server_->address(); }
  v1::ParameterServer::Stub& stub() { return *stub_; }
  ParameterService& service() { return service_; }
  Metrics& metrics() { return registry_; }

 private:
  Metrics registry_;
  ShardMetrics metrics_;
  ParameterService service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::ParameterServer::Stub> stub_;
};

inline v1::NormsRequest NormsOf(uint64_t version) {
  v1::NormsRequest request;
  request.set_version(version);
  return request;
}

// All that shards hold of a model at a version, by block.
struct Held {
  std::vector<std::string> weights, state;
  std::vector<blocks::Coding> codings;

  bool operator==(const Held&) const = default;
};

// A course of training over several shards.
class Course {
 public:
  static constexpr uint32_t kUnits = 3;

  Course(const v1::TensorTable& table, const v1::OptimizerSpec& optimizer, int shards, int threads = 1,
         bool share_memory = false)
      : table_(table), optimizer_(optimizer), share_memory_(share_memory), blocks_(BlocksOf(table)) {
    for (int i = 0; i < shards; ++i) shards_.push_back(std::make_unique<ServedShard>(threads));
    Configure(1);
  }

  void Configure(uint64_t epoch) {
    std::vector<std::string> addresses;
    for (const auto& shard : shards_) addresses.push_back(shard->address());
    group_ = std::make_unique<client::ShardGroup>(epoch, addresses, share_memory_);
    group_->Place(&blocks_, optimizer_);
    v1::ConfigureRequest request;
    request.set_job_id("job");
    request.set_phase("phase");
    *request.mutable_table() = table_;
    *request.mutable_optimizer() = optimizer_;
    request.set_max_steps(100);
    request.set_units_per_step(kUnits);
    ASSERT_OK(group_->Configure(request));
  }

  std::vector<float> InitialWeights(uint32_t block) const {
    return Numbers(1, block, blocks_.blocks()[block].size, 0.1f);
  }
  // What `unit` contributes to the step after `version`. Units' scales differ.
  std::vector<float> Gradient(uint64_t version, uint32_t unit, uint32_t block) const {
    return Numbers(100 * (version + 1) + unit, block, blocks_.blocks()[block].size,
                   0.01f / static_cast<float>(1 + unit + block));
  }

  void LoadInitial() {
    const absl::Status loaded = group_->Load(0, [this](uint32_t block, v1::LoadRequest* request) {
      request->set_weights(Bytes(InitialWeights(block)));
      return absl::OkStatus();
    });
    ASSERT_OK(loaded);
  }
  void Load(uint64_t version, const Held& held) {
    const absl::Status loaded = group_->Load(version, [&held](uint32_t block, v1::LoadRequest* request) {
      request->set_weights(held.weights[block]);
      request->set_state(held.state[block]);
      *request->mutable_coding() = blocks::CodingToProto(held.codings[block]);
      return absl::OkStatus();
    });
    ASSERT_OK(loaded);
  }

  // Codings by block.
  std::vector<blocks::Coding> Codings(uint64_t version) {
    std::vector<blocks::Coding> codings(blocks_.blocks().size());
    absl::Mutex mutex;
    const absl::Status pulled =
        group_->Pull(version, [&](uint32_t block, absl::string_view, const blocks::Coding& coding) {
          absl::MutexLock lock(&mutex);
          codings[block] = coding;
          return absl::OkStatus();
        });
    EXPECT_OK(pulled);
    return codings;
  }

  void PushUnit(uint64_t version, uint32_t unit, const std::vector<blocks::Coding>& codings, bool backwards = false) {
    const std::unique_ptr<client::GradientPush> push = group_->Push(version, unit);
    const auto count = static_cast<uint32_t>(blocks_.blocks().size());
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t block = backwards ? count - 1 - i : i;
      if (!blocks_.TensorOf(blocks_.blocks()[block]).trainable) continue;
      std::string values;
      const auto saturated = blocks::Encode(Gradient(version, unit, block), codings[block], &values);
      ASSERT_OK(saturated);
      ASSERT_OK(push->Add(block, codings[block], std::move(values), *saturated));
    }
    ASSERT_OK(push->Finish());
  }

  // Takes one step with every unit.
  void Step(uint64_t version, float clip_factor = 0.5f) {
    const std::vector<blocks::Coding> codings = Codings(version);
    for (uint32_t unit = 0; unit < kUnits; ++unit) PushUnit(version, unit, codings);
    Commit(version, clip_factor);
  }
  void Commit(uint64_t version, float clip_factor = 0.5f) {
    const auto norms = group_->Norms(NormsOf(version));
    ASSERT_OK(norms);
    v1::CommitRequest request;
    request.set_version(version);
    request.set_clip_factor(clip_factor);
    const auto rate = group_->Commit(request);
    ASSERT_OK(rate);
  }

  Held Read(client::ShardSnapshot* snapshot) {
    Held held;
    held.weights.resize(blocks_.blocks().size());
    held.state.resize(blocks_.blocks().size());
    held.codings.resize(blocks_.blocks().size());
    absl::Mutex mutex;
    size_t count = 0;
    const absl::Status read = snapshot->Read([&](const v1::SnapshotReply& reply) {
      absl::MutexLock lock(&mutex);
      ++count;
      held.weights[reply.block()] = reply.weights();
      held.state[reply.block()] = reply.state();
      held.codings[reply.block()] = *blocks::CodingFromProto(reply.coding());
      return absl::OkStatus();
    });
    EXPECT_OK(read);
    EXPECT_EQ(count, blocks_.blocks().size());
    return held;
  }
  std::unique_ptr<client::ShardSnapshot> Snapshot(uint64_t version) {
    auto snapshot = group_->Snapshot(version);
    EXPECT_OK(snapshot);
    return snapshot.ok() ? *std::move(snapshot) : nullptr;
  }
  Held ReadAt(uint64_t version) {
    const std::unique_ptr<client::ShardSnapshot> snapshot = Snapshot(version);
    return snapshot == nullptr ? Held() : Read(snapshot.get());
  }

  client::ShardGroup& group() { return *group_; }
  const blocks::BlockTable& blocks() const { return blocks_; }
  ServedShard& shard(size_t index) { return *shards_[index]; }

 private:
  const v1::TensorTable table_;
  const v1::OptimizerSpec optimizer_;
  const bool share_memory_;
  const blocks::BlockTable blocks_;
  std::vector<std::unique_ptr<ServedShard>> shards_;
  std::unique_ptr<client::ShardGroup> group_;
};

}  // namespace millrace::ps
