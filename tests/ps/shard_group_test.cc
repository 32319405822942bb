// Whole steps of one to three shards, as workers and a coordinator call them.
#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"

namespace millrace::ps {
namespace {

class EveryOptimizer : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Optimizers, EveryOptimizer,
                         ::testing::Values("sgd", "momentum", "adamw", "adafactor", "lion", "muon"),
                         [](const auto& info) { return std::string(info.param); });

// Through messages or through shared memory.
TEST_P(EveryOptimizer, AnyNumberOfShardsAndThreadsGivesTheSameBits) {
  std::vector<Held> results;
  std::vector<std::vector<double>> norms;
  for (const int shards : {1, 2, 3}) {
    Course course(LittleTable(), OptimizerOf(GetParam()), shards, /*threads=*/shards == 2 ? 3 : 1,
                  /*share_memory=*/shards != 1);
    course.LoadInitial();
    for (uint64_t version = 0; version < 3; ++version) course.Step(version);
    const std::vector<blocks::Coding> codings = course.Codings(3);
    for (uint32_t unit = 0; unit < Course::kUnits; ++unit) course.PushUnit(3, unit, codings);
    const auto last = course.group().Norms(3);
    ASSERT_TRUE(last.ok()) << last.status();
    norms.push_back(last->squared);
    results.push_back(course.ReadAt(3));
  }
  EXPECT_TRUE(results[0] == results[1]);
  EXPECT_TRUE(results[0] == results[2]);
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(norms[0], norms[2]);
  // Something was learnt, but not by the frozen tensor.
  Course course(LittleTable(), OptimizerOf(GetParam()), 1);
  for (const blocks::Block& block : course.blocks().blocks()) {
    const bool trained = course.blocks().TensorOf(block).trainable;
    EXPECT_EQ(results[0].weights[block.index] != Bytes(course.InitialWeights(block.index)), trained);
    EXPECT_EQ(norms[0][block.index] > 0, trained);
    EXPECT_EQ(results[0].codings[block.index].bits, trained ? 16u : 64u);
    if (!trained) {
      EXPECT_EQ(results[0].state[block.index], "");
    }
  }
}

TEST_P(EveryOptimizer, StateSurvivesSnapshotAndLoadWithAnotherNumberOfShards) {
  Course whole(LittleTable(), OptimizerOf(GetParam()), 1);
  whole.LoadInitial();
  for (uint64_t version = 0; version < 2; ++version) whole.Step(version);
  const Held held = whole.ReadAt(2);
  for (uint64_t version = 2; version < 4; ++version) whole.Step(version);

  Course resumed(LittleTable(), OptimizerOf(GetParam()), 3);
  resumed.Load(2, held);
  EXPECT_TRUE(resumed.ReadAt(2) == held);
  for (uint64_t version = 2; version < 4; ++version) resumed.Step(version);
  EXPECT_TRUE(resumed.ReadAt(4) == whole.ReadAt(4));
}

TEST(ShardGroup, PushesInAnyOrderGiveTheSameBits) {
  std::vector<Held> results;
  std::vector<uint32_t> order(Course::kUnits);
  std::iota(order.begin(), order.end(), 0u);
  do {
    Course course(LittleTable(), OptimizerOf("adamw"), 2);
    course.LoadInitial();
    for (uint64_t version = 0; version < 2; ++version) {
      const std::vector<blocks::Coding> codings = course.Codings(version);
      for (const uint32_t unit : order) course.PushUnit(version, unit, codings, /*backwards=*/unit == order[0]);
      course.Commit(version);
    }
    results.push_back(course.ReadAt(2));
    EXPECT_TRUE(results.back() == results.front());
  } while (std::next_permutation(order.begin(), order.end()));
  EXPECT_EQ(results.size(), 6u);
}

TEST(ShardGroup, UnitsPushedAtOnceAndTwiceCountOnce) {
  Course course(LittleTable(), OptimizerOf("adamw"), 2), plain(LittleTable(), OptimizerOf("adamw"), 2);
  for (Course* each : {&course, &plain}) each->LoadInitial();
  for (uint64_t version = 0; version < 3; ++version) {
    const std::vector<blocks::Coding> codings = course.Codings(version);
    std::vector<std::thread> workers;
    for (uint32_t i = 0; i < 2 * Course::kUnits; ++i) {
      workers.emplace_back(
          [&, i] { course.PushUnit(version, i % Course::kUnits, codings, /*backwards=*/i >= Course::kUnits); });
    }
    for (std::thread& worker : workers) worker.join();
    course.Commit(version);
    plain.Step(version);
  }
  EXPECT_TRUE(course.ReadAt(3) == plain.ReadAt(3));
}

TEST(ShardGroup, SnapshotIsOfItsVersionWhileTrainingGoesOn) {
  for (const char* type : {"adamw", "muon", "adafactor"}) {
    Course course(LittleTable(), OptimizerOf(type), 2);
    course.LoadInitial();
    course.Step(0);
    const Held before = course.ReadAt(1);
    const std::unique_ptr<client::ShardSnapshot> first = course.Snapshot(1);
    course.Step(1);
    const Held between = course.ReadAt(2);
    const std::unique_ptr<client::ShardSnapshot> second = course.Snapshot(2);
    course.Step(2);
    course.Step(3);
    EXPECT_FALSE(between == before);
    EXPECT_TRUE(course.Read(first.get()) == before) << type;
    EXPECT_TRUE(course.Read(second.get()) == between) << type;
  }
}

TEST(ShardGroup, AbandonedSnapshotsHoldNothing) {
  Course course(LittleTable(), OptimizerOf("adamw"), 1);
  course.LoadInitial();
  // More than may be read at a time.
  for (uint64_t version = 0; version < 12; ++version) {
    const std::unique_ptr<client::ShardSnapshot> abandoned = course.Snapshot(version);
    ASSERT_NE(abandoned, nullptr);
    course.Step(version);
  }
  course.ReadAt(12);
}

// Pulls of the present version race with commits of it: they get its bytes or an error, and never others.
TEST(ShardGroup, PullDuringACommitGetsItsVersionOrNothing) {
  constexpr uint64_t kVersions = 12;
  Course plain(LittleTable(), OptimizerOf("adamw"), 1);
  plain.LoadInitial();
  std::vector<Held> at;
  for (uint64_t version = 0; version < kVersions; ++version) {
    at.push_back(plain.ReadAt(version));
    plain.Step(version);
  }
  at.push_back(plain.ReadAt(kVersions));

  Course course(LittleTable(), OptimizerOf("adamw"), 1, /*threads=*/2);
  course.LoadInitial();
  // Each with a group of its own: an error in a group ends all its calls.
  std::vector<std::unique_ptr<client::ShardGroup>> groups;
  for (int i = 0; i < 3; ++i) {
    groups.push_back(std::make_unique<client::ShardGroup>(1, std::vector<std::string>{course.shard(0).address()},
                                                           /*share_memory=*/i != 0));
    groups.back()->Place(&course.blocks(), OptimizerOf("adamw"));
  }
  std::vector<std::thread> pullers;
  std::atomic<int> right = 0, wrong = 0, refused = 0;
  for (const auto& group : groups) {
    pullers.emplace_back([&, group = group.get()] {
      for (uint64_t version = 0; version <= kVersions;) {
        const absl::Status pulled =
            group->Pull(version, [&](uint32_t block, absl::string_view weights, const blocks::Coding& coding) {
              const bool same = weights == at[version].weights[block] && coding == at[version].codings[block];
              ++(same ? right : wrong);
              return absl::OkStatus();
            });
        if (pulled.ok()) continue;
        // It has passed, before or while it was read.
        EXPECT_TRUE(absl::IsFailedPrecondition(pulled) || absl::IsCancelled(pulled)) << pulled;
        ++refused;
        ++version;
      }
    });
  }
  for (uint64_t version = 0; version < kVersions; ++version) course.Step(version);
  for (const auto& group : groups) group->Cancel();
  for (std::thread& puller : pullers) puller.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(right, 0);
  EXPECT_GT(refused, 0);
}

TEST(ShardGroup, ShardsWithoutBlocksFollow) {
  v1::TensorTable table;
  AddTensor("only", {10}, v1::Tensor::VECTOR, true, 0, &table);
  Course course(table, OptimizerOf("adamw"), 3), plain(table, OptimizerOf("adamw"), 1);
  course.LoadInitial();
  plain.LoadInitial();
  for (uint64_t version = 0; version < 3; ++version) {
    course.Step(version);
    plain.Step(version);
  }
  const Held held = course.ReadAt(3);
  EXPECT_TRUE(held == plain.ReadAt(3));
  course.Configure(2);
  course.Load(3, held);
  course.Step(3);
  EXPECT_FALSE(course.ReadAt(4) == held);
}

TEST(ShardGroup, NewEpochStartsFromWhatIsLoaded) {
  Course course(LittleTable(), OptimizerOf("adamw"), 2);
  course.LoadInitial();
  course.Step(0);
  const Held held = course.ReadAt(1);
  const std::vector<blocks::Coding> codings = course.Codings(1);
  course.PushUnit(1, 0, codings);  // of a step that will be abandoned
  course.Step(1);
  const Held after = course.ReadAt(2);
  course.Configure(2);
  course.Load(1, held);
  course.Step(1);
  EXPECT_TRUE(course.ReadAt(2) == after);
}

}  // namespace
}  // namespace millrace::ps
