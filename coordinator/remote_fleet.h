// Reaches the shards over the network.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "client/shard_group.h"
#include "coordinator/shard_fleet.h"

namespace millrace::coordinator {

// Makes the fleets that a runner works with, and breaks off their calls when a shard is lost: the runner would wait
// for an answer that never comes. Thread-safe.
class RemoteFleets {
 public:
  // `credentials` of the shards; null: plain TCP.
  explicit RemoteFleets(std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr)
      : credentials_(std::move(credentials)) {}
  // A FleetConnector.
  absl::StatusOr<std::unique_ptr<ShardFleet>> Connect(uint64_t epoch, const std::vector<std::string>& addresses);
  // The shard at this address has gone: calls of the fleet that has it return CANCELLED from now on.
  void Lose(absl::string_view address);
  // The same for whatever there is; for the end.
  void LoseAll();

 private:
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  absl::Mutex mutex_;
  std::weak_ptr<client::ShardGroup> group_ ABSL_GUARDED_BY(mutex_);  // of the last fleet
  std::vector<std::string> addresses_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::coordinator
