#include "blocks/block_table.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::blocks {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::Tensor* Add(const std::string& name, std::vector<int64_t> shape, v1::Tensor::Role role, uint32_t group,
                v1::TensorTable* table) {
  v1::Tensor* const tensor = table->add_tensors();
  tensor->set_name(name);
  for (const int64_t size : shape) tensor->add_shape(size);
  tensor->set_role(role);
  tensor->set_trainable(true);
  tensor->set_group(group);
  return tensor;
}

v1::TensorTable Table() {
  v1::TensorTable table;
  Add("embedding", {100, 1000}, v1::Tensor::EMBEDDING, 0, &table);
  Add("weight", {256, 256}, v1::Tensor::MATRIX, 2, &table)->set_rows_are_inputs(true);
  Add("bias", {256}, v1::Tensor::VECTOR, 2, &table)->set_trainable(false);
  return table;
}

TEST(BlockTable, ElementsOfABlockCountForScoresOfTheirRowsColumnsOrThemselves) {
  v1::TensorTable described;
  const v1::Sensitivity::By kinds[] = {v1::Sensitivity::ROWS, v1::Sensitivity::COLUMNS, v1::Sensitivity::ELEMENTS};
  for (const v1::Sensitivity::By by : kinds) {
    Add(absl::StrCat("by", by), {100, 1000}, v1::Tensor::MATRIX, 0, &described)->mutable_sensitivity()->set_by(by);
  }
  Add("untracked", {100, 1000}, v1::Tensor::MATRIX, 0, &described);
  const auto table = BlockTable::Create(described);
  ASSERT_OK(table);
  for (const Block& block : table->blocks()) {
    const TensorInfo& tensor = table->TensorOf(block);
    const ScoreRange range = table->ScoresOf(block);
    EXPECT_EQ(tensor.tracked(), tensor.name != "untracked");
    // As it would be found one by one.
    int64_t first = tensor.size, last = -1;
    for (int64_t i = block.begin; tensor.tracked() && i < block.begin + block.size; ++i) {
      const int64_t score = tensor.name == "by1" ? i : tensor.name == "by2" ? i / 1000 : i % 1000;
      ASSERT_EQ(tensor.ScoreOf(i), score);
      first = std::min(first, score);
      last = std::max(last, score);
    }
    EXPECT_EQ(range.count, tensor.tracked() ? last - first + 1 : 0) << tensor.name;
    if (tensor.tracked()) {
      EXPECT_EQ(range.first, first) << tensor.name;
    }
  }
  for (const auto& change : {+[](v1::Tensor* tensor) { tensor->set_trainable(false); },
                             +[](v1::Tensor* tensor) { tensor->mutable_sensitivity()->set_decay(1); },
                             +[](v1::Tensor* tensor) { tensor->mutable_sensitivity()->set_uncertainty_decay(-0.1); },
                             +[](v1::Tensor* tensor) { tensor->mutable_sensitivity()->clear_by(); }}) {
    v1::TensorTable wrong = described;
    change(wrong.mutable_tensors(1));
    EXPECT_THAT(BlockTable::Create(wrong).status().message(), HasSubstr("sensitivity"));
  }
}

TEST(BlockTable, CutsTensorsIntoContiguousBlocksInOrder) {
  const auto table = BlockTable::Create(Table());
  ASSERT_OK(table);
  EXPECT_EQ(table->parameters(), 100'000 + 65'536 + 256);
  ASSERT_EQ(table->blocks().size(), 4u);
  std::vector<int64_t> begins, sizes;
  for (const Block& block : table->blocks()) {
    EXPECT_EQ(block.index, begins.size());
    begins.push_back(block.begin);
    sizes.push_back(block.size);
  }
  EXPECT_THAT(begins, ElementsAre(0, 65'536, 0, 0));
  EXPECT_THAT(sizes, ElementsAre(65'536, 34'464, 65'536, 256));
  EXPECT_EQ(table->Name(table->blocks()[1]), "embedding[65536, 100000)");
  EXPECT_EQ(table->TensorOf(table->blocks()[3]).name, "bias");
  ASSERT_EQ(table->tensors().size(), 3u);
  EXPECT_EQ(table->tensors()[1].first_block, 2u);
  EXPECT_EQ(table->tensors()[0].block_count, 2u);
  EXPECT_TRUE(table->tensors()[1].rows_are_inputs);
  EXPECT_FALSE(table->tensors()[2].trainable);
}

TEST(BlockTable, GroupsListTheirBlocksAndMayBeEmpty) {
  const auto table = BlockTable::Create(Table());
  ASSERT_OK(table);
  ASSERT_EQ(table->groups(), 3u);
  EXPECT_THAT(table->BlocksOfGroup(0), ElementsAre(0, 1));
  EXPECT_THAT(table->BlocksOfGroup(1), ElementsAre());
  EXPECT_THAT(table->BlocksOfGroup(2), ElementsAre(2, 3));
}

TEST(BlockTable, RefusesWhatIsNoTableNamingTheTensor) {
  const struct {
    const char* part;
    std::function<void(v1::TensorTable*)> spoil;
  } cases[] = {
      {"table is empty", [](auto* table) { table->clear_tensors(); }},
      {"'' has no usable name", [](auto* table) { table->mutable_tensors(1)->clear_name(); }},
      {"has no usable name", [](auto* table) { table->mutable_tensors(1)->set_name(std::string(257, 'x')); }},
      {"'embedding' occurs twice", [](auto* table) { table->mutable_tensors(1)->set_name("embedding"); }},
      {"'bias' has too few or many dimensions", [](auto* table) { table->mutable_tensors(2)->clear_shape(); }},
      {"'bias' has too few or many dimensions",
       [](auto* table) {
         for (int i = 0; i < 4; ++i) table->mutable_tensors(2)->add_shape(1);
       }},
      {"'weight' has no role", [](auto* table) { table->mutable_tensors(1)->clear_role(); }},
      {"'weight' has no role",
       [](auto* table) { table->mutable_tensors(1)->set_role(static_cast<v1::Tensor::Role>(77)); }},
      {"'bias' is a matrix without two", [](auto* table) { table->mutable_tensors(2)->set_role(v1::Tensor::MATRIX); }},
      {"'bias' is out of its group's order", [](auto* table) { table->mutable_tensors(2)->set_group(1); }},
      {"'bias' is out of its group's order", [](auto* table) { table->mutable_tensors(2)->set_group(kMaxGroups); }},
      {"'bias' has an impossible size", [](auto* table) { table->mutable_tensors(2)->set_shape(0, 0); }},
      {"'bias' has an impossible size", [](auto* table) { table->mutable_tensors(2)->set_shape(0, -256); }},
      {"'weight' has an impossible size",
       [](auto* table) {
         // The product overflows to a small number.
         table->mutable_tensors(1)->set_shape(0, int64_t{1} << 32);
         table->mutable_tensors(1)->set_shape(1, int64_t{1} << 32);
       }},
      {"'bias' makes the model too large",
       [](auto* table) { table->mutable_tensors(2)->set_shape(0, kMaxParameters); }},
      {"tensors; at most",
       [](auto* table) {
         for (int64_t i = 0; i < kMaxTensors; ++i) Add(absl::StrCat("t", i), {1}, v1::Tensor::VECTOR, 2, table);
       }},
  };
  for (const auto& [part, spoil] : cases) {
    v1::TensorTable table = Table();
    spoil(&table);
    const absl::Status refused = BlockTable::Create(table).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(part));
  }
}

TEST(BlockTable, LargestModelIsTaken) {
  v1::TensorTable table;
  Add("all", {kMaxParameters}, v1::Tensor::VECTOR, kMaxGroups - 1, &table);
  const auto made = BlockTable::Create(table);
  ASSERT_OK(made);
  EXPECT_EQ(made->blocks().size(), static_cast<size_t>(kMaxParameters / kMaxBlockElements));
  EXPECT_EQ(made->groups(), kMaxGroups);
}

}  // namespace
}  // namespace millrace::blocks
