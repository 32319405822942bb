// What Kubernetes' probes are told of real processes.
#include "common/health.h"

#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cluster/tiny.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

// Asks until the answer is `well`.
absl::Status AwaitHealth(const std::string& address, absl::string_view service, bool well) {
  const absl::Time until = absl::Now() + kPatience;
  for (;;) {
    const absl::Status health = CheckHealth(address, service, absl::Seconds(1));
    if (health.ok() == well) return absl::OkStatus();
    if (absl::Now() > until) return health.ok() ? absl::InternalError(address + " stays well") : health;
  }
}

TEST(Health, EveryRoleIsReadyOnceItCanWork) {
  Cluster cluster({.workers = 1, .shards = 1, .health = true});
  const std::string coordinator = cluster.health(cluster.coordinator()), shard = cluster.health(cluster.shard(0)),
                    worker = cluster.health(cluster.worker(0));
  for (const std::string& address : {coordinator, shard, worker}) {
    EXPECT_OK(AwaitHealth(address, kReady, true));
    EXPECT_OK(CheckHealth(address, kLive, kPatience));
  }
  // While a job trains, the shard holds what it should.
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 5);
  EXPECT_OK(AwaitHealth(shard, kReady, true));
  cluster.AwaitSuccess(job);
}

TEST(Health, WithoutACoordinatorOthersLiveButAreNotReady) {
  Cluster cluster({.workers = 1, .shards = 1, .health = true});
  const std::string shard = cluster.health(cluster.shard(0)), worker = cluster.health(cluster.worker(0));
  EXPECT_OK(AwaitHealth(shard, kReady, true));
  EXPECT_OK(AwaitHealth(worker, kReady, true));
  cluster.coordinator().Kill();
  for (const std::string& address : {shard, worker}) {
    EXPECT_OK(AwaitHealth(address, kReady, false));
    EXPECT_OK(CheckHealth(address, kLive, kPatience));
  }
  cluster.coordinator().Restart();
  for (const std::string& address : {shard, worker}) EXPECT_OK(AwaitHealth(address, kReady, true));
}

TEST(Health, CommandTellsByItsStatus) {
  Cluster cluster({.workers = 1, .shards = 1, .health = true});
  const std::string worker = cluster.health(cluster.worker(0));
  ASSERT_OK(AwaitHealth(worker, kReady, true));
  EXPECT_TRUE(RunMillrace({"health", worker}).ending.well());
  EXPECT_TRUE(RunMillrace({"health", worker, "--service", "ready"}).ending.well());
  EXPECT_EQ(RunMillrace({"health", worker, "--service", "reddy"}).ending.status, 1);
  EXPECT_EQ(RunMillrace({"health"}).ending.status, 2);
  cluster.worker(0).Kill();
  const Outcome gone = RunMillrace({"health", worker});
  EXPECT_EQ(gone.ending.status, 1);
  EXPECT_THAT(gone.out, ::testing::HasSubstr(worker));
}

}  // namespace
}  // namespace millrace::testing
