#include "blocks/placement.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::blocks {
namespace {

// Layers with matrices of several blocks and small vectors.
BlockTable Table() {
  v1::TensorTable table;
  const auto add = [&table](const std::string& name, std::vector<int64_t> shape, v1::Tensor::Role role) {
    v1::Tensor& tensor = *table.add_tensors();
    tensor.set_name(name);
    for (const int64_t size : shape) tensor.add_shape(size);
    tensor.set_role(role);
  };
  add("embedding", {1000, 384}, v1::Tensor::EMBEDDING);
  for (int layer = 0; layer < 5; ++layer) {
    add(absl::StrCat(layer, ".gain"), {384}, v1::Tensor::VECTOR);
    add(absl::StrCat(layer, ".attention"), {384, 1152}, v1::Tensor::MATRIX);
    add(absl::StrCat(layer, ".up"), {384, 1536}, v1::Tensor::MATRIX);
    add(absl::StrCat(layer, ".down"), {1536, 384}, v1::Tensor::MATRIX);
  }
  return *BlockTable::Create(table);
}

v1::OptimizerSpec Optimizer(const std::string& type) {
  v1::OptimizerSpec spec;
  spec.set_type(type);
  return spec;
}

class Placement : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Optimizers, Placement, ::testing::Values("sgd", "adamw", "muon", "adafactor"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Placement, NoShardHoldsMoreThanOnePieceAboveAnother) {
  const BlockTable table = Table();
  const bool whole = GetParam() == std::string("muon") || GetParam() == std::string("adafactor");
  const int64_t largest_piece = whole ? 384 * 1536 : kMaxBlockElements;
  for (const uint32_t shards : {1u, 2u, 3u, 4u, 7u}) {
    const std::vector<uint32_t> shard_of = PlaceBlocks(table, Optimizer(GetParam()), shards);
    ASSERT_EQ(shard_of.size(), table.blocks().size());
    std::vector<int64_t> held(shards, 0);
    for (const Block& block : table.blocks()) {
      ASSERT_LT(shard_of[block.index], shards);
      held[shard_of[block.index]] += block.size;
    }
    EXPECT_LE(*std::max_element(held.begin(), held.end()) - *std::min_element(held.begin(), held.end()), largest_piece)
        << shards;
  }
}

TEST_P(Placement, WholeMatricesLieOnOneShardWhereTheOptimizerNeedsThem) {
  const BlockTable table = Table();
  const std::vector<uint32_t> shard_of = PlaceBlocks(table, Optimizer(GetParam()), 3);
  int divided = 0;
  for (const TensorInfo& tensor : table.tensors()) {
    if (tensor.role != v1::Tensor::MATRIX) continue;
    for (uint32_t i = 1; i < tensor.block_count; ++i) {
      divided += shard_of[tensor.first_block + i] != shard_of[tensor.first_block];
    }
  }
  const bool whole = GetParam() == std::string("muon") || GetParam() == std::string("adafactor");
  EXPECT_EQ(divided == 0, whole);
}

TEST(Placement, IsDefined) {
  v1::TensorTable table;
  for (const int64_t size : {65'536 + 10, 10, 30, 20, 20}) {
    v1::Tensor& tensor = *table.add_tensors();
    tensor.set_name(absl::StrCat("t", table.tensors_size()));
    tensor.add_shape(size);
    tensor.set_role(v1::Tensor::VECTOR);
  }
  const BlockTable blocks = *BlockTable::Create(table);
  // From the largest: 65536 to 0, 30 to 1, 20 to 2, 20 to 2, which holds 40 now, 10 to 1, and the last 10, 40 being on
  // both, to 1.
  EXPECT_THAT(PlaceBlocks(blocks, Optimizer("adamw"), 3), ::testing::ElementsAre(0, 1, 1, 1, 2, 2));
  EXPECT_THAT(PlaceBlocks(blocks, Optimizer("adamw"), 1), ::testing::ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST(Placement, MoreShardsThanPiecesLeavesSomeEmpty) {
  v1::TensorTable table;
  v1::Tensor& tensor = *table.add_tensors();
  tensor.set_name("only");
  tensor.add_shape(5);
  tensor.set_role(v1::Tensor::VECTOR);
  EXPECT_THAT(PlaceBlocks(*BlockTable::Create(table), Optimizer("adamw"), 4), ::testing::ElementsAre(0));
}

}  // namespace
}  // namespace millrace::blocks
