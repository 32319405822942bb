#include "coordinator/rating_examples.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/rating_sets.h"
#include "testing/status.h"
#include "text/examples.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using testing::RatingOf;
using testing::RatingPairOf;
using testing::RatingPairs;
using testing::RatingSetOf;
using v1::Rating;
using Json = nlohmann::json;

constexpr Rating::Choice A = Rating::A, B = Rating::B, T = Rating::TIE, S = Rating::SKIP;

RatedPair Rated(const std::vector<Rating::Choice>& choices) {
  RatedPair rated;
  rated.pair = RatingPairOf(0);
  for (size_t i = 0; i < choices.size(); ++i) {
    rated.ratings.push_back(RatingOf(std::string("rater ") + static_cast<char>('a' + i), choices[i]));
  }
  return rated;
}

TEST(RatingOutcome, IsWhatMoreRatersChoseThanAnythingElse) {
  const struct {
    std::vector<Rating::Choice> choices;
    RatingOutcome outcome;
  } cases[] = {
      {{}, RatingOutcome::kUnrated},       {{S}, RatingOutcome::kSkipped},
      {{S, S}, RatingOutcome::kSkipped},   {{A}, RatingOutcome::kA},
      {{B, S}, RatingOutcome::kB},         {{T}, RatingOutcome::kTie},
      {{A, B}, RatingOutcome::kTie},       {{A, T}, RatingOutcome::kTie},
      {{A, A, B}, RatingOutcome::kA},      {{A, B, B}, RatingOutcome::kB},
      {{A, A, T, B}, RatingOutcome::kA},   {{A, T, T}, RatingOutcome::kTie},
      {{A, A, T, T}, RatingOutcome::kTie}, {{A, A, B, T, T}, RatingOutcome::kTie},
  };
  for (const auto& one : cases) {
    EXPECT_EQ(OutcomeOf(Rated(one.choices)), one.outcome) << ::testing::PrintToString(one.choices);
  }
  RatedPair flagged = Rated({A, A, S});
  flagged.ratings[2].set_flagged(true);
  EXPECT_EQ(OutcomeOf(flagged), RatingOutcome::kFlagged);
}

TEST(RatingMargin, IsTheMeanOfTheWinnersStrengths) {
  RatedPair rated = Rated({A, A, A, B});
  EXPECT_EQ(MarginOf(rated, RatingOutcome::kA), 0);
  rated.ratings[0].set_strength(3);
  rated.ratings[1].set_strength(2);
  rated.ratings[3].set_strength(1);
  EXPECT_EQ(MarginOf(rated, RatingOutcome::kA), 2.5);
  EXPECT_EQ(MarginOf(rated, RatingOutcome::kTie), 0);
}

TEST(RatingExample, IsReadAsAPair) {
  RatedPair rated = Rated({B, B, A});
  rated.ratings[0].set_strength(1);
  rated.ratings[2].set_note("said \"no\"\nat first");
  auto example = text::ParseExample(text::ExampleKind::kPairs, ExampleLine(rated, RatingOutcome::kB));
  ASSERT_OK(example);
  ASSERT_EQ(example->messages.size(), 1u);
  EXPECT_EQ(example->messages[0], (text::Message{"user", "question 0"}));
  EXPECT_EQ(example->response, "bad answer 0");
  EXPECT_EQ(example->rejected, "good answer 0");
  EXPECT_EQ(example->margin, 1);
  EXPECT_FALSE(example->tie);
  const Json line = Json::parse(ExampleLine(rated, RatingOutcome::kB));
  EXPECT_EQ(line["raters"], 3);
  EXPECT_EQ(line["source_chosen"], "pretrain@last");
  EXPECT_EQ(line["source_rejected"], "sft@best");
  EXPECT_EQ(line["notes"], Json({"said \"no\"\nat first"}));

  v1::RatingPair::Message* system = rated.pair.add_prompt();
  system->set_role("system");
  system->set_content("Be short.");
  rated.pair.mutable_prompt()->SwapElements(0, 1);
  example = text::ParseExample(text::ExampleKind::kPairs, ExampleLine(Rated({A, B}), RatingOutcome::kTie));
  ASSERT_OK(example);
  EXPECT_TRUE(example->tie);
  example = text::ParseExample(text::ExampleKind::kPairs, ExampleLine(rated, RatingOutcome::kA));
  ASSERT_OK(example);
  ASSERT_EQ(example->messages.size(), 2u);
  EXPECT_EQ(example->messages[0], (text::Message{"system", "Be short."}));
}

TEST(ExportExamples, WritesWhatWasDecidedAndCountsTheRest) {
  const text::TemporaryFolder folder;
  const auto store = RatingStore::Open(folder / "ratings.sqlite");
  ASSERT_OK(store);
  constexpr uint64_t kPairs = 700;
  ASSERT_OK((*store)->Create(RatingSetOf("set", 1), RatingPairs(kPairs)));
  // Of every seven pairs: 2 × A, B, tie, skip, a flag, and one that nobody rates.
  for (uint64_t i = 0; i < kPairs; ++i) {
    const Rating::Choice choices[] = {A, A, B, T, S, A};
    if (i % 7 == 6) continue;
    Rating rating = RatingOf("ann", choices[i % 7]);
    rating.set_flagged(i % 7 == 5);
    ASSERT_OK((*store)->Rate("set", i, rating));
  }
  std::string lines;
  const auto counts = ExportExamples(store->get(), "set", [&lines](absl::string_view more) {
    EXPECT_EQ(more.back(), '\n');
    absl::StrAppend(&lines, more);
    return absl::OkStatus();
  });
  ASSERT_OK(counts);
  EXPECT_EQ(counts->examples(), 400u);
  EXPECT_EQ(counts->ties(), 100u);
  EXPECT_EQ(counts->skipped(), 100u);
  EXPECT_EQ(counts->flagged(), 100u);
  EXPECT_EQ(counts->unrated(), 100u);
  const std::vector<std::string> each = absl::StrSplit(lines, '\n', absl::SkipEmpty());
  ASSERT_EQ(each.size(), 400u);
  EXPECT_EQ(Json::parse(each[6])["chosen"], "bad answer 9");
  EXPECT_EQ(Json::parse(each[7])["tie"], true);

  const auto refuse = [](absl::string_view) { return absl::ResourceExhaustedError("full"); };
  EXPECT_TRUE(absl::IsResourceExhausted(ExportExamples(store->get(), "set", refuse).status()));
  EXPECT_TRUE(absl::IsNotFound(ExportExamples(store->get(), "none", refuse).status()));
}

}  // namespace
}  // namespace millrace::coordinator
