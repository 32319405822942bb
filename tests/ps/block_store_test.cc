// What the network's buffers hide from whoever calls over gRPC: when exactly a block is read.
#include "ps/block_store.h"

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

v1::ConfigureRequest Configuration(const std::string& optimizer) {
  v1::ConfigureRequest request;
  request.set_epoch(1);
  *request.mutable_table() = LittleTable();
  *request.mutable_optimizer() = OptimizerOf(optimizer);
  request.set_max_steps(10);
  request.set_units_per_step(1);
  request.set_shard_count(1);
  return request;
}

class BlockStoreTest : public ::testing::TestWithParam<const char*> {
 protected:
  BlockStoreTest() : store_(Make(Configuration(GetParam()))) {
    for (const blocks::Block& block : table_.blocks()) {
      v1::LoadRequest request;
      request.set_block(block.index);
      request.set_weights(Bytes(Numbers(1, block.index, block.size, 0.1f)));
      request.set_crc32c(Crc32c(request.weights().data(), request.weights().size()));
      EXPECT_OK(store_->Load(request));
    }
  }

  std::unique_ptr<BlockStore> Make(const v1::ConfigureRequest& request) {
    auto store = BlockStore::Create(request, &compute_);
    EXPECT_OK(store);
    return *std::move(store);
  }
  void Push(uint64_t version) {
    for (const blocks::Block& block : table_.blocks()) {
      if (!table_.TensorOf(block).trainable) continue;
      std::string weights(store_->PulledBytes(block.index), '\0');
      v1::Coding coding;
      ASSERT_OK(store_->Pull(block.index, version, weights.data(), &coding));
      v1::PushRequest request;
      request.set_version(version);
      request.set_block(block.index);
      *request.mutable_coding() = coding;
      std::string values;
      ASSERT_OK(blocks::Encode(Numbers(9 + version, block.index, block.size, 0.01f), *blocks::CodingFromProto(coding),
                               &values));
      request.set_values(values);
      request.set_crc32c(Crc32c(values.data(), values.size()));
      ASSERT_TRUE(*store_->Push(request));
    }
  }
  absl::Status Commit(uint64_t version) {
    v1::CommitRequest request;
    request.set_version(version);
    request.set_clip_factor(1);
    bool applied = false;
    const absl::Status committed = store_->Commit(request, &applied).status();
    EXPECT_EQ(applied, committed.ok());
    return committed;
  }
  void Step(uint64_t version) {
    Push(version);
    ASSERT_OK(Commit(version));
  }
  std::unique_ptr<Cuts::Cut> Hold(uint64_t version) {
    auto cut = store_->Hold(version);
    EXPECT_OK(cut);
    return *std::move(cut);
  }
  std::string Read(Cuts::Cut* cut, uint32_t block) {
    v1::SnapshotReply reply;
    EXPECT_OK(store_->Read(cut, block, &reply));
    return reply.SerializeAsString();
  }
  std::vector<std::string> ReadAll(Cuts::Cut* cut) {
    std::vector<std::string> all;
    for (const uint32_t block : store_->held()) all.push_back(Read(cut, block));
    return all;
  }

  const kernels::Compute compute_{kernels::DetectIsa(), 2};
  const blocks::BlockTable table_ = BlocksOf(LittleTable());
  const std::unique_ptr<BlockStore> store_;
};

// Those with single blocks alone and those with whole matrices.
INSTANTIATE_TEST_SUITE_P(Optimizers, BlockStoreTest, ::testing::Values("adamw", "muon", "adafactor"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(BlockStoreTest, HeldVersionStaysAsItWasWhileStepsAreTaken) {
  Step(0);
  const std::vector<std::string> expected = ReadAll(Hold(1).get());
  const std::unique_ptr<Cuts::Cut> cut = Hold(1);
  EXPECT_EQ(Read(cut.get(), 0), expected[0]);
  EXPECT_EQ(store_->copy_bytes(), 0u);
  Step(1);
  EXPECT_GT(store_->copy_bytes(), 0u);
  const std::vector<std::string> next = ReadAll(Hold(2).get());
  for (size_t i = 1; i < expected.size(); ++i) {
    EXPECT_EQ(Read(cut.get(), store_->held()[i]), expected[i]);
    // Or nothing was shown.
    EXPECT_EQ(next[i] != expected[i], table_.TensorOf(table_.blocks()[store_->held()[i]]).trainable);
  }
  EXPECT_EQ(store_->copy_bytes(), 0u);
}

TEST_P(BlockStoreTest, ALoadAgainCountsUntilSomethingIsPushed) {
  const auto load = [this](uint32_t block, uint64_t key, bool again) {
    v1::LoadRequest request;
    request.set_block(block);
    request.set_again(again);
    request.set_weights(Bytes(Numbers(key, block, table_.blocks()[block].size, 0.1f)));
    request.set_crc32c(Crc32c(request.weights().data(), request.weights().size()));
    EXPECT_OK(store_->Load(request));
  };
  const auto weights = [this](uint32_t block, uint64_t version) {
    const std::unique_ptr<Cuts::Cut> cut = Hold(version);
    v1::SnapshotReply reply;
    EXPECT_OK(store_->Read(cut.get(), block, &reply));
    return reply.weights();
  };
  const std::string before = weights(0, 0);
  load(0, 2, /*again=*/false);
  EXPECT_EQ(weights(0, 0), before);
  load(0, 2, /*again=*/true);
  const std::string after = weights(0, 0);
  EXPECT_NE(after, before);
  Push(0);
  load(0, 3, /*again=*/true);
  EXPECT_EQ(weights(0, 0), after);
  ASSERT_OK(Commit(0));
  const std::string next = weights(0, 1);
  load(0, 3, /*again=*/true);
  EXPECT_EQ(weights(0, 1), next);
}

TEST_P(BlockStoreTest, VersionThatNobodyHoldsAnyMoreIsNotCopied) {
  Hold(0).reset();
  Step(0);
  EXPECT_EQ(store_->copy_bytes(), 0u);
}

TEST_P(BlockStoreTest, ClosingEndsCommitsAndReading) {
  const std::unique_ptr<Cuts::Cut> cut = Hold(0);
  Push(0);
  store_->Close(absl::UnavailableError("over"));
  EXPECT_TRUE(absl::IsUnavailable(Commit(0)));
  v1::SnapshotReply read;
  EXPECT_TRUE(absl::IsUnavailable(store_->Read(cut.get(), 0, &read)));
  std::string weights(store_->PulledBytes(0), '\0');
  v1::Coding coding;
  EXPECT_TRUE(absl::IsUnavailable(store_->Pull(0, 0, weights.data(), &coding)));
  v1::NormsReply norms;
  EXPECT_TRUE(absl::IsUnavailable(store_->Norms(NormsOf(0), &norms)));
  EXPECT_TRUE(absl::IsUnavailable(store_->AwaitVersion(5, [] { return false; })));
  EXPECT_TRUE(absl::IsUnavailable(store_->Hold(0).status()));
}

// A shard that no block fell to is told its version by nobody.
TEST_P(BlockStoreTest, StoreWithoutBlocksIsAtAnyVersionThatIsAsked) {
  v1::ConfigureRequest request = Configuration(GetParam());
  request.set_shard_count(40);
  request.set_shard_index(39);
  for (int call = 0; call < 4; ++call) {
    const std::unique_ptr<BlockStore> empty = Make(request);
    ASSERT_EQ(empty->blocks(), 0u);
    v1::NormsReply norms;
    v1::CommitRequest commit;
    commit.set_version(7);
    bool applied = false;
    const absl::Status done = call == 0   ? empty->Norms(NormsOf(7), &norms)
                              : call == 1 ? empty->Commit(commit, &applied).status()
                              : call == 2 ? empty->Hold(7).status()
                                          : empty->AwaitVersion(7, [] { return true; });
    EXPECT_OK(done) << call << ": " << done;
    EXPECT_EQ(empty->version(), call == 1 ? 8u : 7u);
  }
}

}  // namespace
}  // namespace millrace::ps
