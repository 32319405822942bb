// Whole steps of one to three shards, as workers and a coordinator call them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"
#include "testing/status.h"

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
    const auto last = course.group().Norms(NormsOf(3));
    ASSERT_OK(last);
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

// ---- sensitivity ----

// The little table, with scores of each kind.
v1::TensorTable TrackedTable() {
  v1::TensorTable table = LittleTable();
  const struct {
    int tensor;
    v1::Sensitivity::By by;
  } tracked[] = {{0, v1::Sensitivity::ROWS}, {2, v1::Sensitivity::COLUMNS}, {3, v1::Sensitivity::ELEMENTS}};
  for (const auto& [tensor, by] : tracked) {
    v1::Sensitivity& sensitivity = *table.mutable_tensors(tensor)->mutable_sensitivity();
    sensitivity.set_by(by);
    sensitivity.set_decay(0.85);
    sensitivity.set_uncertainty_decay(0.6);
  }
  return table;
}

v1::NormsRequest ScoresOf(uint64_t version, bool tracked) {
  v1::NormsRequest request = NormsOf(version);
  request.set_scores(true);
  request.set_tracked(tracked);
  return request;
}

std::vector<std::vector<double>> Scores(Course* course, uint64_t version, bool tracked) {
  const auto norms = course->group().Norms(ScoresOf(version, tracked));
  EXPECT_OK(norms);
  return norms->scores;
}

v1::CommitRequest CommitOf(uint64_t version, bool tracked) {
  v1::CommitRequest request;
  request.set_version(version);
  request.set_clip_factor(0.25f);
  request.set_tracked(tracked);
  return request;
}

void PushAll(Course* course, uint64_t version) {
  const std::vector<blocks::Coding> codings = course->Codings(version);
  for (uint32_t unit = 0; unit < Course::kUnits; ++unit) course->PushUnit(version, unit, codings);
}

TEST_P(EveryOptimizer, ScoresAreThoseOfTheGradientsOfTrackedSteps) {
  std::vector<std::vector<std::vector<double>>> all;
  std::vector<Held> held;
  for (const int shards : {1, 3}) {
    Course course(TrackedTable(), OptimizerOf(GetParam()), shards, /*threads=*/shards);
    course.LoadInitial();
    const auto commit = [&](uint64_t version, bool tracked) {
      const auto committed = course.group().Commit(CommitOf(version, tracked));
      ASSERT_OK(committed);
    };
    PushAll(&course, 0);
    const std::vector<std::vector<double>> first = Scores(&course, 0, true);
    EXPECT_EQ(Scores(&course, 0, true), first) << "asking changes something";
    for (const auto& block : Scores(&course, 0, false)) {
      for (const double sum : block) EXPECT_EQ(sum, 0);
    }
    // From weights and gradients before the step, unclipped: what the units add up to is known but for its coding.
    for (const blocks::Block& block : course.blocks().blocks()) {
      const blocks::TensorInfo& tensor = course.blocks().TensorOf(block);
      ASSERT_EQ(first[block.index].empty(), !tensor.tracked());
      if (!tensor.tracked()) continue;
      std::vector<double> expected(first[block.index].size());
      const std::vector<float> weights = course.InitialWeights(block.index);
      std::vector<double> gradient(weights.size());
      for (uint32_t unit = 0; unit < Course::kUnits; ++unit) {
        const std::vector<float> own = course.Gradient(0, unit, block.index);
        for (size_t i = 0; i < own.size(); ++i) gradient[i] += static_cast<double>(own[i]);
      }
      for (size_t i = 0; i < weights.size(); ++i) {
        const double importance = std::fabs(static_cast<double>(weights[i]) * gradient[i]);
        const int64_t at = tensor.ScoreOf(block.begin + static_cast<int64_t>(i));
        expected[static_cast<size_t>(at - course.blocks().ScoresOf(block).first)] +=
            0.15 * importance * (0.4 * 0.85 * importance);
      }
      const double largest = *std::max_element(expected.begin(), expected.end());
      ASSERT_GT(largest, 0);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(first[block.index][i], expected[i], 1e-2 * largest) << course.blocks().Name(block) << " " << i;
      }
    }
    commit(0, true);
    PushAll(&course, 1);
    EXPECT_EQ(Scores(&course, 1, false), first) << "the commit did not take the gradient in";
    commit(1, false);
    PushAll(&course, 2);
    EXPECT_EQ(Scores(&course, 2, false), first) << "a commit that is not tracked did";
    const auto later = Scores(&course, 2, true);
    EXPECT_NE(later, first);
    commit(2, true);
    // They are in the state of checkpoints.
    held.push_back(course.ReadAt(3));
    all.push_back(later);
    Course again(TrackedTable(), OptimizerOf(GetParam()), 2);
    again.Load(3, held.back());
    PushAll(&again, 3);
    EXPECT_EQ(Scores(&again, 3, false), later);
  }
  EXPECT_EQ(all[0], all[1]);
  EXPECT_TRUE(held[0] == held[1]);
}

TEST(ShardGroup, ElementsOfACommitAreZeroOnWhicheverShard) {
  for (const int shards : {1, 3}) {
    Course course(TrackedTable(), OptimizerOf("muon"), shards);
    course.LoadInitial();
    PushAll(&course, 0);
    v1::CommitRequest request = CommitOf(0, true);
    v1::ZeroedElements* zeroed = request.add_zeroed();
    zeroed->set_tensor(2);
    zeroed->add_elements(3);
    zeroed->add_elements(143'999);
    zeroed = request.add_zeroed();
    zeroed->set_tensor(3);
    zeroed->add_elements(32);
    for (int i = 0; i < 2; ++i) {
      const auto committed = course.group().Commit(request);
      ASSERT_OK(committed);
    }
    const Held held = course.ReadAt(1);
    for (const blocks::Block& block : course.blocks().blocks()) {
      const std::string& name = course.blocks().TensorOf(block).name;
      if (name == "frozen") continue;
      const std::vector<float> weights = Floats(held.weights[block.index]);
      for (int64_t i = 0; i < block.size; ++i) {
        const int64_t at = block.begin + i;
        const bool zero = (name == "wide" && (at == 3 || at == 143'999)) || (name == "gain" && at == 32);
        ASSERT_EQ(weights[static_cast<size_t>(i)] == 0.0f, zero) << name << " " << at;
      }
    }
    request.mutable_zeroed(0)->add_elements(4);
    EXPECT_TRUE(absl::IsFailedPrecondition(course.group().Commit(request).status()))
        << "another commit of that version";
  }
}

TEST(ShardGroup, WhatCannotBecomeZeroIsNamed) {
  Course course(TrackedTable(), OptimizerOf("sgd"), 1);
  course.LoadInitial();
  PushAll(&course, 0);
  const struct {
    uint32_t tensor;
    uint64_t element;
    const char* said;
  } wrong[] = {{6, 0, "the model has 6"}, {1, 0, "not trained"}, {3, 33, "it has 33 elements"}};
  for (const auto& [tensor, element, said] : wrong) {
    v1::CommitRequest request = CommitOf(0, true);
    request.add_zeroed()->set_tensor(tensor);
    request.mutable_zeroed(0)->add_elements(element);
    const absl::Status status = course.group().Commit(request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(said));
  }
}

// ---- snapshots ----

TEST(ShardGroup, ASnapshotLeavesTensorsOutAndHoldsNothingOfThem) {
  Course course(LittleTable(), OptimizerOf("adamw"), 2);
  course.LoadInitial();
  // All but the gain and the bias: no byte of the others travels, and no copy of them is made.
  const std::vector<uint32_t> left_out = {0, 1, 2, 4};
  auto snapshot = course.group().Snapshot(0, left_out);
  ASSERT_OK(snapshot);
  course.Step(0);
  size_t copies = 0;
  for (size_t i = 0; i < 2; ++i) {
    copies +=
        static_cast<size_t>(course.shard(i)
                                .metrics()
                                .Gauge("millrace_shard_snapshot_copy_bytes", "Memory of blocks copied for snapshots.")
                                ->Value());
  }
  EXPECT_LE(copies, 34 * 3 * sizeof(float));
  std::vector<std::string> names;
  size_t bytes = 0;
  absl::Mutex mutex;
  const absl::Status read = (*snapshot)->Read([&](const v1::SnapshotReply& reply) {
    absl::MutexLock lock(&mutex);
    names.push_back(course.blocks().TensorOf(course.blocks().blocks()[reply.block()]).name);
    bytes += reply.weights().size() + reply.state().size();
    return absl::OkStatus();
  });
  ASSERT_OK(read);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("gain", "bias"));
  EXPECT_EQ(bytes, 34 * 3 * sizeof(float));
  const std::vector<uint32_t> unknown = {6};
  const absl::Status refused = course.group().Snapshot(1, unknown).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
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
