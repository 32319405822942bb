// The same job gives the same bits on any cluster.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/tiny.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

struct Shape {
  int workers = 1;
  int shards = 1;
  int threads = 1;
  std::string precision = "f32";
  std::vector<std::string> isas;
  bool share_memory = true;
};

std::string ShapeName(const ::testing::TestParamInfo<Shape>& info) {
  const Shape& shape = info.param;
  std::string name =
      absl::StrCat(shape.precision, "_", shape.workers, "workers_", shape.shards, "shards_", shape.threads, "threads");
  if (!shape.share_memory) absl::StrAppend(&name, "_messages");
  if (!shape.isas.empty()) absl::StrAppend(&name, "_", absl::StrJoin(shape.isas, "_"));
  return name;
}

class AnyCluster : public ::testing::TestWithParam<Shape> {};

TEST_P(AnyCluster, TrainsTheSameBits) {
  const Shape& shape = GetParam();
  const std::vector<std::string> sets = InstructionSets();
  for (const std::string& isa : shape.isas) {
    if (std::find(sets.begin(), sets.end(), isa) == sets.end()) {
      GTEST_SKIP() << "SKIPPED: this processor has no " << isa << "; run the tests on one that has it too";
    }
  }
  Cluster cluster({.workers = shape.workers,
                   .shards = shape.shards,
                   .threads = shape.threads,
                   .max_isas = shape.isas,
                   .share_memory = shape.share_memory});
  const std::string job = cluster.Submit(kTinyJob, {"model.precision=" + shape.precision});
  EXPECT_EQ(cluster.AwaitSuccess(job).step(), kTinySteps);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest(shape.precision));
}

INSTANTIATE_TEST_SUITE_P(Shapes, AnyCluster,
                         ::testing::Values(Shape{1, 1}, Shape{1, 2}, Shape{1, 3}, Shape{2, 1}, Shape{2, 2}, Shape{2, 3},
                                           Shape{3, 1}, Shape{3, 2}, Shape{3, 3}, Shape{1, 1, 2}, Shape{2, 2, 2},
                                           Shape{1, 1, 1, "bf16"}, Shape{2, 3, 1, "bf16"}, Shape{3, 2, 2, "bf16"},
                                           Shape{2, 2, 1, "f32", {}, false}, Shape{2, 3, 1, "bf16", {}, false}),
                         &ShapeName);

INSTANTIATE_TEST_SUITE_P(InstructionSets, AnyCluster,
                         ::testing::Values(Shape{1, 1, 1, "f32", {"scalar"}}, Shape{1, 1, 1, "f32", {"avx2"}},
                                           Shape{1, 1, 1, "f32", {"avx512"}}, Shape{2, 1, 2, "f32", {"avx2", "avx512"}},
                                           Shape{1, 1, 1, "bf16", {"scalar"}}, Shape{1, 1, 1, "bf16", {"avx2"}},
                                           Shape{1, 1, 1, "bf16", {"avx512"}}, Shape{1, 1, 1, "bf16", {"avx512_bf16"}},
                                           Shape{2, 2, 1, "bf16", {"scalar", "avx2"}},
                                           Shape{3, 2, 1, "bf16", {"avx2", "avx512", "avx512_bf16"}}),
                         &ShapeName);

// Other layers, optimizers and unit sizes have no digest on record: one cluster is the other's judge.
struct Job {
  std::string name, file;
  std::vector<std::string> overrides;
};

class AnyJob : public ::testing::TestWithParam<Job> {};

TEST_P(AnyJob, TrainsTheSameBitsOnOneAndOnManyProcesses) {
  std::vector<std::string> overrides = GetParam().overrides;
  overrides.push_back("phases.0.stop.max_steps=20");
  std::vector<std::string> digests;
  for (const Cluster::Options& options :
       {Cluster::Options{.workers = 1, .shards = 1}, Cluster::Options{.workers = 3, .shards = 3, .threads = 2}}) {
    Cluster cluster(options);
    const std::string job = cluster.Submit(GetParam().file, overrides);
    cluster.AwaitSuccess(job);
    digests.push_back(cluster.LastDigest(job));
  }
  EXPECT_EQ(digests[0], digests[1]);
  EXPECT_NE(digests[0], TinyDigest());
}

INSTANTIATE_TEST_SUITE_P(
    Jobs, AnyJob,
    ::testing::Values(
        Job{"LlamaMuon", kTinyJob, {"model.family=llama", "model.kv_heads=1", "phases.0.optimizer.type=muon"}},
        Job{"Adafactor", kTinyJob, {"phases.0.optimizer.type=adafactor", "phases.0.unit_microbatches=2"}},
        Job{"LionUntied",
            kTinyJob,
            {"phases.0.optimizer.type=lion", "phases.0.optimizer.lr=1e-3", "phases.0.optimizer.gradient_bits=32",
             "phases.0.optimizer.weight_bits=16", "model.tied_embeddings=false"}},
        Job{"Lstm", "examples/tiny-lstm.yaml"},
        Job{"CnnMuonBf16",
            "examples/tiny-lstm.yaml",
            {"model.family=cnn", "model.precision=bf16", "phases.0.optimizer.type=muon"}}),
    [](const auto& info) { return info.param.name; });

// The digest does depend on what it should depend on: otherwise the tests above would prove nothing.
TEST(Determinism, AnotherSeedGivesOtherBits) {
  Cluster cluster({});
  const std::string job = cluster.Submit(kTinyJob, {"seed=2"});
  cluster.AwaitSuccess(job);
  EXPECT_NE(cluster.LastDigest(job), TinyDigest());
}

TEST(Determinism, CommandAndManifestGiveTheDigestOfTheFile) {
  Cluster cluster({});
  const std::string job = cluster.Submit(kTinyJob, {"phases.0.stop.max_steps=10"});
  cluster.AwaitSuccess(job);
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = cluster.client().ListCheckpoints(job);
  ASSERT_OK(checkpoints);
  ASSERT_FALSE(checkpoints->empty());
  EXPECT_EQ(checkpoints->back().digest(), cluster.LastDigest(job));
  EXPECT_THAT(RunMillrace({"digest", cluster.Checkpoint(job, "last")}).out,
              ::testing::HasSubstr(cluster.LastDigest(job)));
}

}  // namespace
}  // namespace millrace::testing
