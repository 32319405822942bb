#include "coordinator/remote_fleet.h"

#include <algorithm>
#include <utility>

#include "blocks/block_table.h"
#include "common/status.h"

namespace millrace::coordinator {
namespace {

class RemoteCut : public FleetCut {
 public:
  RemoteCut(std::shared_ptr<client::ShardGroup> group, std::unique_ptr<client::ShardSnapshot> snapshot)
      : group_(std::move(group)), snapshot_(std::move(snapshot)) {}
  absl::Status Read(absl::FunctionRef<absl::Status(const v1::SnapshotReply& block)> sink) override {
    return snapshot_->Read(sink);
  }
  void Cancel() override { snapshot_->Cancel(); }

 private:
  const std::shared_ptr<client::ShardGroup> group_;  // outlives the snapshot
  const std::unique_ptr<client::ShardSnapshot> snapshot_;
};

class RemoteFleet : public ShardFleet {
 public:
  explicit RemoteFleet(std::shared_ptr<client::ShardGroup> group) : group_(std::move(group)) {}

  absl::Status Configure(const FleetSetup& setup) override {
    MILLRACE_ASSIGN_OR_RETURN(blocks::BlockTable blocks, blocks::BlockTable::Create(setup.table));
    blocks_ = std::make_unique<blocks::BlockTable>(std::move(blocks));
    group_->Place(blocks_.get(), setup.optimizer);
    v1::ConfigureRequest request;
    request.set_job_id(setup.job_id);
    request.set_phase(setup.phase);
    *request.mutable_table() = setup.table;
    *request.mutable_optimizer() = setup.optimizer;
    request.set_max_steps(setup.max_steps);
    request.set_units_per_step(setup.units_per_step);
    return group_->Configure(request);
  }

  absl::Status Load(uint64_t version,
                    absl::FunctionRef<absl::Status(uint32_t block, v1::LoadRequest* request)> source) override {
    return group_->Load(version, source);
  }

  absl::StatusOr<FleetNorms> Norms(const v1::NormsRequest& request) override {
    MILLRACE_ASSIGN_OR_RETURN(const client::ShardGroup::BlockNorms norms, group_->Norms(request));
    FleetNorms all;
    if (request.scores()) all.scores.resize(blocks_->tensors().size());
    for (const blocks::Block& block : blocks_->blocks()) {
      const std::vector<double>& sums = norms.scores[block.index];
      if (sums.empty()) continue;
      std::vector<double>& scores = all.scores[block.tensor];
      scores.resize(static_cast<size_t>(blocks_->TensorOf(block).scores()));
      const auto first = static_cast<size_t>(blocks_->ScoresOf(block).first);
      for (size_t i = 0; i < sums.size(); ++i) scores[first + i] += sums[i];
    }
    for (const double squared : norms.squared) all.squared_norm += squared;  // in block order
    all.saturated = norms.saturated;
    return all;
  }

  absl::StatusOr<double> Commit(const v1::CommitRequest& request) override { return group_->Commit(request); }

  absl::StatusOr<std::unique_ptr<FleetCut>> Snapshot(uint64_t version, absl::Span<const uint32_t> left_out) override {
    MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<client::ShardSnapshot> snapshot, group_->Snapshot(version, left_out));
    return std::make_unique<RemoteCut>(group_, std::move(snapshot));
  }

 private:
  std::unique_ptr<blocks::BlockTable> blocks_;  // outlives the group's use of it
  const std::shared_ptr<client::ShardGroup> group_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShardFleet>> RemoteFleets::Connect(uint64_t epoch,
                                                                  const std::vector<std::string>& addresses) {
  auto group = std::make_shared<client::ShardGroup>(epoch, addresses, /*share_memory=*/false, credentials_);
  absl::MutexLock lock(&mutex_);
  group_ = group;
  addresses_ = addresses;
  return std::make_unique<RemoteFleet>(std::move(group));
}

void RemoteFleets::Lose(absl::string_view address) {
  std::shared_ptr<client::ShardGroup> group;
  {
    absl::MutexLock lock(&mutex_);
    if (std::find(addresses_.begin(), addresses_.end(), address) == addresses_.end()) return;
    group = group_.lock();
  }
  if (group != nullptr) group->Cancel();
}

void RemoteFleets::LoseAll() {
  std::shared_ptr<client::ShardGroup> group;
  {
    absl::MutexLock lock(&mutex_);
    group = group_.lock();
  }
  if (group != nullptr) group->Cancel();
}

}  // namespace millrace::coordinator
