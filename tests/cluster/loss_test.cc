// Processes come and go, politely or not: the result stays the same.
#include <random>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cluster/tiny.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

// Any step will do; the one that was drawn is told, so that a failure can be had again.
uint64_t RandomStep() {
  std::random_device chance;
  const uint64_t step = std::uniform_int_distribution<uint64_t>(1, kTinySteps - 10)(chance);
  ::testing::Test::RecordProperty("step", static_cast<int>(step));
  std::printf("drawn: step %d\n", static_cast<int>(step));
  return step;
}

TEST(Loss, KilledWorkerIsReplaced) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, RandomStep());
  cluster.worker(0).Kill();
  cluster.worker(0).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, EveryWorkerIsKilledAndOneComesBack) {
  Cluster cluster({.workers = 2, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, RandomStep());
  cluster.worker(0).Kill();
  cluster.worker(1).Kill();
  cluster.worker(1).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, WorkersJoinHalfWay) {
  Cluster cluster({.workers = 1, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 20);
  cluster.AddWorker();
  cluster.AddWorker();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, WorkerLeavesWhenAsked) {
  Cluster cluster({.workers = 2, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 20);
  EXPECT_TRUE(cluster.worker(0).Terminate().well()) << cluster.worker(0).log();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, KilledShardIsReplacedAndTrainingReturnsToTheLastCheckpoint) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 25);
  cluster.shard(1).Kill();
  cluster.shard(1).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, ShardKilledBeforeTheFirstCheckpoint) {
  Cluster cluster({.workers = 1, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 2);
  cluster.shard(0).Kill();
  cluster.shard(0).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, EverythingIsKilledAndResumed) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 25);
  cluster.KillAll();
  cluster.StartAll();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, CoordinatorIsKilledAndTheOthersFindItAgain) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 15);
  cluster.coordinator().Kill();
  cluster.coordinator().Restart();
  cluster.coordinator().address();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, CoordinatorCheckpointsWhenAskedToLeave) {
  Cluster cluster({.workers = 1, .shards = 1});
  // No checkpoint is due before the end.
  const std::string job =
      cluster.Submit(kTinyJob, {"phases.0.checkpoint.every_steps=1000", "phases.0.evaluate.every_steps=1000"});
  cluster.AwaitStep(job, 15);
  EXPECT_TRUE(cluster.coordinator().Terminate().well()) << cluster.coordinator().log();
  cluster.coordinator().Restart();
  cluster.coordinator().address();
  cluster.Job(job);  // until the new coordinator answers
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = cluster.client().ListCheckpoints(job);
  ASSERT_OK(checkpoints);
  ASSERT_FALSE(checkpoints->empty());
  EXPECT_GE(checkpoints->back().step(), 15u);
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, ShardThatIsAskedToLeaveHasTheJobCheckpointedFirst) {
  Cluster cluster({.workers = 2, .shards = 2});
  // No checkpoint is due before the end.
  const std::string job =
      cluster.Submit(kTinyJob, {"phases.0.checkpoint.every_steps=1000", "phases.0.evaluate.every_steps=1000"});
  cluster.AwaitStep(job, 15);
  EXPECT_TRUE(cluster.shard(1).Terminate().well()) << cluster.shard(1).log();
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = cluster.client().ListCheckpoints(job);
  ASSERT_OK(checkpoints);
  ASSERT_FALSE(checkpoints->empty());
  const uint64_t kept = checkpoints->back().step();
  EXPECT_GE(kept, 15u);
  // Nothing is done twice: what was reached is what is kept.
  EXPECT_EQ(cluster.Job(job).step(), kept);
  cluster.shard(1).Restart();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, SpareShardThatIsAskedToLeaveDisturbsNobody) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob, {"phases.0.stop.max_steps=300"});
  cluster.AwaitStep(job, 5);
  const size_t spare = cluster.AddShard();
  while (!::testing::Value(cluster.shard(spare).log(), ::testing::HasSubstr("joined"))) std::this_thread::yield();
  EXPECT_TRUE(cluster.shard(spare).Terminate().well()) << cluster.shard(spare).log();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.coordinator().log().find("as soon as 2 shards"), std::string::npos) << cluster.coordinator().log();
}

TEST(Loss, SilentWorkerLosesItsLease) {
  Cluster cluster({.workers = 2, .shards = 1, .lease_seconds = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 10);
  cluster.worker(0).Stop();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
  // Alive again, it joins again and works.
  cluster.worker(1).Kill();
  cluster.worker(0).Continue();
  const std::string next = cluster.Submit(kTinyJob, {"phases.0.stop.max_steps=5"});
  cluster.AwaitSuccess(next);
}

TEST(Loss, SilentShardIsReplacedByASpareOne) {
  Cluster cluster({.workers = 1, .shards = 2, .lease_seconds = 1});
  cluster.AddShard();
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 15);
  cluster.shard(0).Stop();
  cluster.shard(1).Stop();
  cluster.AddShard();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, PausedJobMakesRoomAndGoesOn) {
  Cluster cluster({.workers = 2, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 15);
  ASSERT_OK(cluster.client().PauseJob(job));
  const v1::Job paused =
      cluster.Await(job, "the pause", [](const v1::Job& job) { return job.state() == v1::Job::PAUSED; });
  EXPECT_LT(paused.step(), kTinySteps);
  const std::string other = cluster.Submit(kTinyJob, {"name=other", "phases.0.stop.max_steps=5"});
  cluster.AwaitSuccess(other);
  EXPECT_EQ(cluster.Job(job).step(), paused.step());
  ASSERT_OK(cluster.client().ResumeJob(job));
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Loss, CancelledJobCanBeTakenUpAgain) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 25);
  ASSERT_OK(cluster.client().CancelJob(job));
  cluster.Await(job, "the end", [](const v1::Job& job) { return job.state() == v1::Job::CANCELLED; });
  ASSERT_OK(cluster.client().ResumeJob(job));
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

}  // namespace
}  // namespace millrace::testing
