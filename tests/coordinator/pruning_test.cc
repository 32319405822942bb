#include "coordinator/pruning.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void Add(const std::string& name, int64_t rows, int64_t columns, v1::Sensitivity::By by, v1::TensorTable* table) {
  v1::Tensor& tensor = *table->add_tensors();
  tensor.set_name(name);
  tensor.add_shape(rows);
  tensor.add_shape(columns);
  tensor.set_role(v1::Tensor::MATRIX);
  tensor.set_trainable(true);
  if (by != v1::Sensitivity::BY_UNSPECIFIED) tensor.mutable_sensitivity()->set_by(by);
}

// Two groups of 3 candidates, the first with 5 inputs and 2 outputs.
blocks::BlockTable Table() {
  v1::TensorTable table;
  Add("a", 3, 5, v1::Sensitivity::ROWS, &table);
  Add("b", 2, 3, v1::Sensitivity::COLUMNS, &table);
  Add("e", 3, 1, v1::Sensitivity::ELEMENTS, &table);
  Add("e2", 3, 1, v1::Sensitivity::ELEMENTS, &table);
  Add("other", 4, 4, v1::Sensitivity::BY_UNSPECIFIED, &table);
  return *blocks::BlockTable::Create(table);
}

v1::Pruning Plan() {
  v1::Pruning pruning;
  v1::Pruning::Group* group = pruning.add_groups();
  group->set_elements(2);
  group->add_beside(0);
  group->add_beside(1);
  pruning.add_groups()->set_elements(3);
  pruning.set_kept(2);
  pruning.set_warmup_steps(2);
  pruning.set_final_steps(3);
  pruning.set_every_steps(1);
  return pruning;
}

TEST(Pruning, BudgetFallsByTheCubeOfWhatIsLeftOfTheSteps) {
  const blocks::BlockTable table = Table();
  v1::Pruning pruning = Plan();
  ASSERT_OK(CheckPruning(pruning, table, 15));
  std::vector<int> kept;
  std::vector<bool> tracked;
  for (uint64_t step = 1; step <= 15; ++step) {
    const PruningStep at = PruningAt(pruning, table, step, 15);
    kept.push_back(at.kept.has_value() ? static_cast<int>(*at.kept) : -1);
    tracked.push_back(at.tracked);
  }
  // 2 + 4 (1 - (t - 2) / 10)³: 4.916, 4.048, 3.372, 2.864, 2.5, 2.256, …
  EXPECT_THAT(kept, ElementsAre(-1, -1, 4, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2));
  EXPECT_THAT(tracked, ElementsAre(true, true, true, true, true, true, true, true, true, true, true, false, false,
                                   false, false));
  pruning.set_every_steps(5);
  EXPECT_FALSE(PruningAt(pruning, table, 4, 15).kept.has_value());
  EXPECT_EQ(PruningAt(pruning, table, 5, 15).kept, 3u);
  EXPECT_EQ(PruningAt(pruning, table, 12, 15).kept, 2u);
}

TEST(Pruning, KeepsTheHighestSumsOfMeanScores) {
  const blocks::BlockTable table = Table();
  // Candidates: 1 + 5/5 + 0, 0 + 0 + 8/2, 0 + 10/5 + 1/2; 3, 2.25, 5.
  const std::vector<std::vector<double>> scores = {{5, 0, 10}, {0, 8, 1}, {1, 0, 0}, {3, 2.25, 5}, {}};
  const auto fallen = [&](uint64_t kept) {
    std::vector<std::vector<uint64_t>> made;
    for (const v1::ZeroedElements& zeroed : Prune(Plan(), table, scores, kept)) {
      made.emplace_back(zeroed.elements().begin(), zeroed.elements().end());
      EXPECT_EQ(zeroed.tensor(), 1 + made.size());
    }
    return made;
  };
  EXPECT_THAT(fallen(6), IsEmpty());
  EXPECT_THAT(fallen(5), ElementsAre(ElementsAre(0), IsEmpty()));
  EXPECT_THAT(fallen(4), ElementsAre(ElementsAre(0), ElementsAre(1)));
  EXPECT_THAT(fallen(2), ElementsAre(ElementsAre(0, 2), ElementsAre(0, 1)));
  EXPECT_THAT(fallen(0), ElementsAre(ElementsAre(0, 1, 2), ElementsAre(0, 1, 2)));
}

TEST(Pruning, EqualScoresAreKeptTogether) {
  const blocks::BlockTable table = Table();
  std::vector<std::vector<double>> scores = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {}};
  for (const v1::ZeroedElements& zeroed : Prune(Plan(), table, scores, 2)) EXPECT_THAT(zeroed.elements(), IsEmpty());
  scores[3] = {1, 1, 2};
  const std::vector<v1::ZeroedElements> zeroed = Prune(Plan(), table, scores, 2);
  EXPECT_THAT(zeroed[0].elements(), ElementsAre(0, 1, 2));
  EXPECT_THAT(zeroed[1].elements(), IsEmpty());
}

TEST(Pruning, SaysWhatCannotBe) {
  const blocks::BlockTable table = Table();
  EXPECT_EQ(CheckPruning(Plan(), table, 5).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_OK(CheckPruning(Plan(), table, 6));
  const struct {
    void (*change)(v1::Pruning* pruning);
    const char* said;
  } cases[] = {
      {[](v1::Pruning* pruning) { pruning->mutable_groups(0)->set_elements(9); }, "not there"},
      {[](v1::Pruning* pruning) { pruning->mutable_groups(0)->set_elements(0); }, "not scored"},
      {[](v1::Pruning* pruning) { pruning->mutable_groups(0)->add_beside(4); }, "other scores"},
      {[](v1::Pruning* pruning) { pruning->mutable_groups(0)->add_beside(7); }, "other scores"},
      {[](v1::Pruning* pruning) { pruning->set_kept(7); }, "cannot be"},
      {[](v1::Pruning* pruning) { pruning->set_every_steps(0); }, "cannot be"},
  };
  for (const auto& wrong : cases) {
    v1::Pruning pruning = Plan();
    wrong.change(&pruning);
    const absl::Status status = CheckPruning(pruning, table, 20);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << wrong.said;
    EXPECT_THAT(std::string(status.message()), HasSubstr(wrong.said));
  }
}

}  // namespace
}  // namespace millrace::coordinator
