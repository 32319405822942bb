// Shards and workers in this process, with arithmetic simple enough to check by hand: what a job's runner needs to be
// tested without model, network or time.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "blocks/block_table.h"
#include "coordinator/members.h"
#include "coordinator/shard_fleet.h"
#include "coordinator/take.h"
#include "coordinator/work_board.h"

namespace millrace::coordinator {

// All blocks of all shards. A gradient is a whole number, so that sums are exact; a step subtracts a 64th of it from
// every weight of the block, and adds it to the block's state.
class SimulatedShards {
 public:
  // As if every shard had died: what they held is gone, and calls fail until Revive.
  void Kill() {
    absl::MutexLock lock(&mutex_);
    dead_ = true;
    blocks_.clear();
    changed_.SignalAll();
  }
  void Revive() {
    absl::MutexLock lock(&mutex_);
    dead_ = false;
  }

  // ---- for workers ----
  absl::StatusOr<std::vector<float>> Weights(uint64_t epoch, uint64_t version) {
    absl::MutexLock lock(&mutex_);
    while (epoch == epoch_ && !dead_ && version_ < version) changed_.Wait(&mutex_);
    if (absl::Status usable = Check(epoch); !usable.ok()) return usable;
    if (blocks_.empty()) return absl::FailedPreconditionError("not configured");
    if (version != version_) return absl::FailedPreconditionError("that version has passed");
    std::vector<float> weights;
    for (const Block& block : blocks_) weights.insert(weights.end(), block.weights.begin(), block.weights.end());
    return weights;
  }
  absl::Status Initialize(uint64_t epoch, float value) {
    absl::MutexLock lock(&mutex_);
    if (absl::Status usable = Check(epoch); !usable.ok()) return usable;
    for (Block& block : blocks_) std::fill(block.weights.begin(), block.weights.end(), value);
    version_ = 0;
    return absl::OkStatus();
  }
  absl::Status Push(uint64_t epoch, uint64_t version, uint32_t unit, int64_t gradient) {
    absl::MutexLock lock(&mutex_);
    if (absl::Status usable = Check(epoch); !usable.ok()) return usable;
    if (version != version_) return absl::FailedPreconditionError("that version has passed");
    units_.emplace(unit, gradient);  // a repeated push counts once
    return absl::OkStatus();
  }

  // ---- for the runner ----
  absl::StatusOr<std::unique_ptr<ShardFleet>> Connect(uint64_t epoch) {
    absl::MutexLock lock(&mutex_);
    if (dead_) return absl::UnavailableError("shard s-1 does not answer");
    if (epoch <= epoch_) return absl::FailedPreconditionError("an old epoch");
    epoch_ = epoch;
    changed_.SignalAll();
    return std::unique_ptr<ShardFleet>(new Fleet(this, epoch));
  }

  std::atomic<int> configured = 0;
  std::atomic<int> commits = 0;
  std::atomic<bool> fail_commits = false;

 private:
  struct Block {
    std::vector<float> weights, state;
    uint32_t tensor = 0;
  };

  class Cut : public FleetCut {
   public:
    Cut(std::vector<Block> blocks, absl::Span<const uint32_t> left_out)
        : blocks_(std::move(blocks)), left_out_(left_out.begin(), left_out.end()) {}
    absl::Status Read(absl::FunctionRef<absl::Status(const v1::SnapshotReply&)> sink) override {
      for (size_t i = 0; i < blocks_.size(); ++i) {
        if (left_out_.contains(blocks_[i].tensor)) continue;
        v1::SnapshotReply reply;
        reply.set_block(static_cast<uint32_t>(i));
        reply.set_weights(Bytes(blocks_[i].weights));
        reply.set_state(Bytes(blocks_[i].state));
        reply.mutable_coding()->set_bits(16);
        reply.mutable_coding()->set_exponent(-static_cast<int32_t>(i));
        if (absl::Status taken = sink(reply); !taken.ok()) return taken;
      }
      return absl::OkStatus();
    }
    void Cancel() override {}

   private:
    const std::vector<Block> blocks_;
    const std::set<uint32_t> left_out_;
  };

  class Fleet : public ShardFleet {
   public:
    Fleet(SimulatedShards* shards, uint64_t epoch) : shards_(shards), epoch_(epoch) {}
    absl::Status Configure(const FleetSetup& setup) override {
      absl::MutexLock lock(&shards_->mutex_);
      if (absl::Status usable = shards_->Check(epoch_); !usable.ok()) return usable;
      const auto table = blocks::BlockTable::Create(setup.table);
      if (!table.ok()) return table.status();
      shards_->blocks_.clear();
      for (const blocks::Block& block : table->blocks()) {
        shards_->blocks_.push_back({std::vector<float>(static_cast<size_t>(block.size)), {}, block.tensor});
      }
      shards_->units_per_step_ = setup.units_per_step;
      shards_->units_.clear();
      shards_->version_ = 0;
      ++shards_->configured;
      return absl::OkStatus();
    }
    absl::Status Load(uint64_t version, absl::FunctionRef<absl::Status(uint32_t, v1::LoadRequest*)> source) override {
      absl::MutexLock lock(&shards_->mutex_);
      if (absl::Status usable = shards_->Check(epoch_); !usable.ok()) return usable;
      for (size_t i = 0; i < shards_->blocks_.size(); ++i) {
        v1::LoadRequest request;
        if (absl::Status filled = source(static_cast<uint32_t>(i), &request); !filled.ok()) return filled;
        shards_->blocks_[i].weights = Floats(request.weights());
        shards_->blocks_[i].state = Floats(request.state());
        if (version > 0 && (request.coding().bits() != 16 || request.coding().exponent() != -static_cast<int>(i))) {
          return absl::InternalError("the coding did not come back");
        }
      }
      shards_->version_ = version;
      return absl::OkStatus();
    }
    absl::StatusOr<FleetNorms> Norms(const v1::NormsRequest& request) override {
      const uint64_t version = request.version();
      absl::MutexLock lock(&shards_->mutex_);
      if (absl::Status usable = shards_->Check(epoch_); !usable.ok()) return usable;
      if (version != shards_->version_ || shards_->units_.size() != shards_->units_per_step_) {
        return absl::FailedPreconditionError("not all units are in");
      }
      const double sum = static_cast<double>(shards_->Sum());
      return FleetNorms{sum * sum, 0, {}};
    }
    absl::StatusOr<double> Commit(const v1::CommitRequest& request) override {
      const uint64_t version = request.version();
      absl::MutexLock lock(&shards_->mutex_);
      if (absl::Status usable = shards_->Check(epoch_); !usable.ok()) return usable;
      if (shards_->fail_commits) return absl::UnavailableError("shard s-1 does not answer");
      if (version != shards_->version_) return absl::FailedPreconditionError("another version");
      const float gradient = static_cast<float>(shards_->Sum());
      for (Block& block : shards_->blocks_) {
        for (float& weight : block.weights) weight -= gradient / 64;
        block.state.resize(block.weights.size());
        for (float& state : block.state) state += gradient;
        // The state takes part, so that a run that lost it ends elsewhere.
        for (size_t i = 0; i < block.weights.size(); ++i) block.weights[i] -= block.state[i] / 4096;
      }
      shards_->units_.clear();
      ++shards_->version_;
      ++shards_->commits;
      shards_->changed_.SignalAll();
      return 0.5;
    }
    absl::StatusOr<std::unique_ptr<FleetCut>> Snapshot(uint64_t version, absl::Span<const uint32_t> left_out) override {
      absl::MutexLock lock(&shards_->mutex_);
      if (absl::Status usable = shards_->Check(epoch_); !usable.ok()) return usable;
      if (version != shards_->version_) return absl::FailedPreconditionError("another version");
      return std::unique_ptr<FleetCut>(new Cut(shards_->blocks_, left_out));
    }

   private:
    SimulatedShards* const shards_;
    const uint64_t epoch_;
  };

  static std::string Bytes(const std::vector<float>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  }
  static std::vector<float> Floats(const std::string& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
  }
  absl::Status Check(uint64_t epoch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (dead_) return absl::UnavailableError("shard s-1 does not answer");
    if (epoch != epoch_) return absl::FailedPreconditionError("another epoch");
    return absl::OkStatus();
  }
  int64_t Sum() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int64_t sum = 0;
    for (const auto& [unit, gradient] : units_) sum += gradient;
    return sum;
  }

  absl::Mutex mutex_;
  absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t units_per_step_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Block> blocks_ ABSL_GUARDED_BY(mutex_);
  std::map<uint32_t, int64_t> units_ ABSL_GUARDED_BY(mutex_);  // of the step after version_
};

// A worker on a thread of its own that speaks to the board directly. `script`, if given, sees each unit first and may
// change the result, or say that the worker dies here (false).
class SimulatedWorker {
 public:
  using Script = std::function<bool(const v1::WorkUnit& unit, v1::WorkResult* result)>;
  SimulatedWorker(std::string name, Members* members, WorkBoard* board, SimulatedShards* shards,
                  Script script = nullptr)
      : members_(members), board_(board), shards_(shards), script_(std::move(script)) {
    v1::JoinRequest request;
    request.set_role(v1::WORKER);
    request.set_name(name);
    id_ = members_->Join(request, absl::Now())->member_id();
    thread_ = std::thread([this] { Run(); });
  }
  ~SimulatedWorker() {
    members_->Remove(id_, "left");
    thread_.join();
  }

  static v1::TensorTable Table() {
    v1::TensorTable table;
    for (const auto& [name, rows] : {std::pair{"wte", 3}, std::pair{"head.weight", 40'000}}) {
      v1::Tensor* const tensor = table.add_tensors();
      tensor->set_name(name);
      tensor->add_shape(rows);
      tensor->add_shape(4);
      tensor->set_trainable(true);
      tensor->set_role(v1::Tensor::MATRIX);
    }
    return table;
  }

 private:
  void Run() {
    for (;;) {
      const auto units = Take(board_, id_);
      if (!units.ok()) return;
      for (const v1::WorkUnit& unit : *units) {
        v1::WorkResult result = Compute(unit);
        if (script_ && !script_(unit, &result)) {
          members_->Remove(id_, "killed");
          return;
        }
        board_->Report(id_, {result});
      }
    }
  }

  v1::WorkResult Compute(const v1::WorkUnit& unit) {
    v1::WorkResult result;
    result.set_lease(unit.lease());
    result.set_epoch(unit.epoch());
    result.set_kind(unit.kind());
    result.set_version(unit.version());
    result.set_unit(unit.unit());
    absl::Status done;
    switch (unit.kind()) {
      case v1::WorkUnit::PLAN:
        *result.mutable_table() = Table();
        (*result.mutable_files())["config.json"] = "{}";
        result.add_parts()->set_file("model.safetensors");
        break;
      case v1::WorkUnit::INITIALIZE:
        done = shards_->Initialize(unit.epoch(), 1.0f);
        break;
      default: {
        const auto weights = shards_->Weights(unit.epoch(), unit.version());
        done = weights.status();
        if (!weights.ok()) break;
        int64_t tokens = 0, predictions = 0;
        for (const v1::Microbatch& microbatch : unit.microbatches()) {
          for (size_t i = 0; i + 4 <= microbatch.tokens().size(); i += 4) {
            uint32_t token;
            std::memcpy(&token, microbatch.tokens().data() + i, 4);
            tokens += token * (i % 28 + 1);
          }
          predictions += int64_t{microbatch.rows()} * (microbatch.columns() - 1);
        }
        result.set_predictions(static_cast<uint64_t>(predictions));
        result.set_loss_sum(static_cast<double>(predictions) * (2 + std::tanh(weights->front() / 1000)));
        if (unit.kind() == v1::WorkUnit::TRAIN) {
          done = shards_->Push(unit.epoch(), unit.version(), unit.unit(), tokens % 17 - 8);
        }
      }
    }
    if (!done.ok()) {
      result.set_failed(true);
      result.set_retryable(true);
      result.set_error(std::string(done.message()));
    }
    return result;
  }

  Members* const members_;
  WorkBoard* const board_;
  SimulatedShards* const shards_;
  const Script script_;
  std::string id_;
  std::thread thread_;
};

}  // namespace millrace::coordinator
