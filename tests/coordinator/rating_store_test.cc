#include "coordinator/rating_store.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/rating_order.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/rating_sets.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::RatingOf;
using testing::RatingPairOf;
using testing::RatingPairs;
using testing::RatingSetOf;
using v1::Rating;

class RatingStoreTest : public ::testing::Test {
 protected:
  RatingStoreTest() { Open(); }

  void Open() {
    store_.reset();
    auto store = RatingStore::Open(path_);
    ASSERT_OK(store);
    store_ = *std::move(store);
  }
  RaterState State(const std::string& rater) {
    const auto state = store_->State("set", rater);
    EXPECT_OK(state);
    return state.value_or(RaterState());
  }
  // Has the rater rate what comes next; returns it.
  uint64_t RateNext(const std::string& rater, Rating::Choice choice = Rating::A) {
    const uint64_t pair = State(rater).next.value();
    EXPECT_OK(store_->Rate("set", pair, RatingOf(rater, choice)));
    return pair;
  }
  uint64_t done() { return store_->Get("set")->done(); }

  const text::TemporaryFolder folder_;
  const std::string path_ = folder_ / "ratings.sqlite";
  std::unique_ptr<RatingStore> store_;
};

TEST_F(RatingStoreTest, SetsOfAJobGoWithIt) {
  for (const char* id : {"job/reward", "job/more/reward", "job-2/reward", "job"}) {
    ASSERT_OK(store_->Create(RatingSetOf(id, 1), RatingPairs(3))) << id;
    ASSERT_OK(store_->Rate(id, 1, RatingOf("ann", Rating::A)));
  }
  ASSERT_OK(store_->RemoveSetsOf("job"));
  const auto left = store_->List();
  ASSERT_EQ(left->size(), 2u);
  EXPECT_EQ((*left)[0].id(), "job-2/reward");
  EXPECT_EQ((*left)[0].ratings(), 1u);
  EXPECT_EQ((*left)[1].id(), "job");
  // The same name again is another set.
  ASSERT_OK(store_->Create(RatingSetOf("job/reward", 2), RatingPairs(4)));
  EXPECT_EQ(store_->Get("job/reward")->ratings(), 0u);
}

TEST_F(RatingStoreTest, TakesTheSameSetAgainAndNoOtherUnderItsName) {
  EXPECT_OK(store_->Create(RatingSetOf("job/reward", 2), RatingPairs(3)));
  ASSERT_OK(store_->Rate("job/reward", 1, RatingOf("ann", Rating::A)));
  EXPECT_OK(store_->Create(RatingSetOf("job/reward", 2), RatingPairs(3)));
  EXPECT_EQ(store_->Get("job/reward")->ratings(), 1u) << "nothing was made anew";
  for (const absl::Status& other : {store_->Create(RatingSetOf("job/reward", 2), RatingPairs(4)),
                                    store_->Create(RatingSetOf("job/reward", 3), RatingPairs(3))}) {
    EXPECT_TRUE(absl::IsAlreadyExists(other)) << other;
    EXPECT_THAT(other.message(), HasSubstr("'job/reward' of 3 pairs"));
  }
  EXPECT_OK(store_->Create(RatingSetOf("another", 1), RatingPairs(1)));
  const auto sets = store_->List();
  ASSERT_OK(sets);
  ASSERT_EQ(sets->size(), 2u);
  EXPECT_EQ((*sets)[0].id(), "job/reward");
  EXPECT_EQ((*sets)[0].pairs(), 3u);
  EXPECT_EQ((*sets)[1].id(), "another");
}

TEST_F(RatingStoreTest, RefusesWhatIsOutOfBounds) {
  for (const char* id : {"", "/a", "a/", "a//b", "a b", "a?", "ä"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(store_->Create(RatingSetOf(id, 1), RatingPairs(1)))) << id;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Create(RatingSetOf(std::string(129, 'a'), 1), RatingPairs(1))));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Create(RatingSetOf("set", 0), RatingPairs(1))));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Create(RatingSetOf("set", 17), RatingPairs(1))));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Create(RatingSetOf("set", 1), {})));

  const auto refused = [this](const std::function<void(v1::RatingPair*)>& change) {
    std::vector<v1::RatingPair> pairs = RatingPairs(2);
    change(&pairs[1]);
    const absl::Status status = store_->Create(RatingSetOf("set", 1), pairs);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("pair 2: "));
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](v1::RatingPair* pair) { pair->set_a(std::string(kMaxRatingTextBytes + 1, 'x')); }),
              HasSubstr("answer a has 65537 bytes; at most 65536"));
  EXPECT_THAT(refused([](v1::RatingPair* pair) { pair->set_b(" \n"); }), HasSubstr("answer b is empty"));
  EXPECT_THAT(refused([](v1::RatingPair* pair) { pair->set_b(pair->a()); }), HasSubstr("identical"));
  EXPECT_THAT(refused([](v1::RatingPair* pair) { pair->clear_prompt(); }), HasSubstr("no prompt"));
  EXPECT_THAT(refused([](v1::RatingPair* pair) { pair->mutable_prompt(0)->set_role("robot"); }), HasSubstr("'robot'"));
  EXPECT_THAT(refused([](v1::RatingPair* pair) {
                for (int i = 0; i < 3; ++i) *pair->add_prompt() = pair->prompt(0);
                for (auto& message : *pair->mutable_prompt()) message.set_content(std::string(20000, 'x'));
              }),
              HasSubstr("the prompt has 80000 bytes"));
  EXPECT_TRUE(store_->List()->empty());

  ASSERT_OK(store_->Create(RatingSetOf("set", 1), RatingPairs(2)));
  const auto bad = [this](uint64_t pair, const Rating& rating) {
    const absl::Status status = store_->Rate("set", pair, rating);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  };
  bad(2, RatingOf("ann", Rating::A));
  for (const char* name : {"", " ann", "ann ", "a/b", "<b>", "a\nb"}) bad(0, RatingOf(name, Rating::A));
  bad(0, RatingOf(std::string(65, 'a'), Rating::A));
  bad(0, RatingOf("ann", Rating::CHOICE_UNSPECIFIED));
  Rating rating = RatingOf("ann", Rating::A);
  rating.set_note(std::string(kMaxRatingNoteBytes + 1, 'x'));
  bad(0, rating);
  rating = RatingOf("ann", Rating::A);
  rating.set_strength(4);
  bad(0, rating);
  rating = RatingOf("ann", Rating::TIE);
  rating.set_strength(1);
  bad(0, rating);
  EXPECT_EQ(store_->Get("set")->ratings(), 0u);
}

TEST_F(RatingStoreTest, DoesNotKnowOtherSets) {
  EXPECT_TRUE(absl::IsNotFound(store_->Get("set").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->State("set", "ann").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->Rate("set", 0, RatingOf("ann", Rating::A))));
  EXPECT_TRUE(absl::IsNotFound(store_->Undo("set", "ann", 0)));
  EXPECT_TRUE(absl::IsNotFound(store_->Read("set", 0, 1).status()));
  EXPECT_TRUE(absl::IsNotFound(store_->GetAgreement("set").status()));
}

TEST_F(RatingStoreTest, CountsWhoIsStillWanted) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 2), RatingPairs(3)));
  RaterState state = State("ann");
  EXPECT_EQ(state.rated, 0u);
  EXPECT_EQ(state.left, 3u);
  EXPECT_FALSE(state.last.has_value());
  std::set<uint64_t> seen;
  for (int i = 0; i < 3; ++i) seen.insert(RateNext("ann"));
  EXPECT_THAT(seen, ElementsAre(0, 1, 2));
  state = State("ann");
  EXPECT_EQ(state.rated, 3u);
  EXPECT_EQ(state.left, 0u);
  EXPECT_FALSE(state.next.has_value());
  EXPECT_EQ(done(), 0u) << "each pair wants a second person";
  for (int i = 0; i < 3; ++i) RateNext("bob", i == 0 ? Rating::SKIP : Rating::B);
  EXPECT_EQ(done(), 3u);
  EXPECT_EQ(State("cleo").left, 0u) << "nothing is left for a third person";
}

TEST_F(RatingStoreTest, GivesFirstWhatFewestHaveRated) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 2), RatingPairs(40)));
  std::set<uint64_t> of_ann, of_bob;
  for (int i = 0; i < 20; ++i) of_ann.insert(RateNext("ann"));
  for (int i = 0; i < 20; ++i) of_bob.insert(RateNext("bob"));
  for (const uint64_t pair : of_ann) EXPECT_FALSE(of_bob.contains(pair)) << "others wait for their first rating";
  EXPECT_EQ(done(), 0u);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(of_bob.contains(RateNext("ann")));
  EXPECT_EQ(done(), 20u);
}

TEST_F(RatingStoreTest, OrderAndSidesAreRandomButTheSameAfterARestart) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 4), RatingPairs(40)));
  const auto order_of = [this](const std::string& rater) {
    std::vector<uint64_t> order;
    while (State(rater).next.has_value()) order.push_back(RateNext(rater));
    while (!order.empty() && State(rater).last.has_value()) {
      EXPECT_OK(store_->Undo("set", rater, *State(rater).last));
    }
    return order;
  };
  const std::vector<uint64_t> of_ann = order_of("ann");
  EXPECT_FALSE(std::is_sorted(of_ann.begin(), of_ann.end()));
  EXPECT_NE(of_ann, order_of("bob"));
  Open();
  EXPECT_EQ(of_ann, order_of("ann"));

  int swapped = 0, differing = 0;
  for (uint64_t pair = 0; pair < 1000; ++pair) {
    const bool for_ann = RatingOrder("set", "ann").Swapped(pair);
    EXPECT_EQ(for_ann, RatingOrder("set", "ann").Swapped(pair));
    swapped += for_ann;
    differing += for_ann != RatingOrder("set", "bob").Swapped(pair);
  }
  // Six standard deviations of a fair coin.
  EXPECT_NEAR(swapped, 500, 95);
  EXPECT_NEAR(differing, 500, 95);
}

TEST_F(RatingStoreTest, KeepsOneRatingOfARaterForAPair) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 2), RatingPairs(2)));
  Rating rating = RatingOf("ann", Rating::A);
  rating.set_strength(3);
  rating.set_note("clearer");
  rating.set_unix_ms(1000);
  ASSERT_OK(store_->Rate("set", 0, rating));
  ASSERT_OK(store_->Rate("set", 1, RatingOf("ann", Rating::A)));
  rating.set_unix_ms(2000);
  ASSERT_OK(store_->Rate("set", 0, rating));
  EXPECT_EQ(State("ann").last, 1u) << "the same again is no new rating";
  EXPECT_EQ(store_->Read("set", 0, 1)->at(0).ratings.at(0).unix_ms(), 1000);

  ASSERT_OK(store_->Rate("set", 0, RatingOf("ann", Rating::TIE)));
  const auto pairs = store_->Read("set", 0, 10);
  ASSERT_OK(pairs);
  ASSERT_EQ(pairs->size(), 2u);
  ASSERT_EQ((*pairs)[0].ratings.size(), 1u);
  EXPECT_EQ((*pairs)[0].ratings[0].choice(), Rating::TIE);
  EXPECT_EQ((*pairs)[0].ratings[0].note(), "");
  EXPECT_EQ(State("ann").last, 0u);
  EXPECT_EQ(store_->Get("set")->ratings(), 2u);
  EXPECT_EQ(done(), 0u) << "one person is not two";
}

TEST_F(RatingStoreTest, UndoGoesBackToTheStart) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 1), RatingPairs(5)));
  std::vector<uint64_t> order;
  for (int i = 0; i < 5; ++i) order.push_back(RateNext("ann"));
  EXPECT_EQ(done(), 5u);
  const absl::Status too_early = store_->Undo("set", "ann", order[0]);
  EXPECT_TRUE(absl::IsFailedPrecondition(too_early)) << too_early;
  while (!order.empty()) {
    EXPECT_EQ(State("ann").last, order.back());
    EXPECT_OK(store_->Undo("set", "ann", order.back()));
    EXPECT_OK(store_->Undo("set", "ann", order.back())) << "the same undo, sent again";
    EXPECT_EQ(State("ann").next, order.back()) << "it is asked again";
    order.pop_back();
    EXPECT_EQ(State("ann").rated, order.size());
  }
  EXPECT_FALSE(State("ann").last.has_value());
  EXPECT_EQ(done(), 0u);
}

TEST_F(RatingStoreTest, UndoLeavesOthersAlone) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 2), RatingPairs(1)));
  RateNext("ann");
  RateNext("bob");
  EXPECT_OK(store_->Undo("set", "ann", 0));
  EXPECT_EQ(store_->Read("set", 0, 1)->at(0).ratings.at(0).rater(), "bob");
  EXPECT_EQ(store_->Get("set")->ratings(), 1u);
}

TEST_F(RatingStoreTest, ReadsPairsInOrder) {
  ASSERT_OK(store_->Create(RatingSetOf("set", 2), RatingPairs(5)));
  const auto pairs = store_->Read("set", 3, 10);
  ASSERT_OK(pairs);
  ASSERT_EQ(pairs->size(), 2u);
  EXPECT_EQ((*pairs)[0].pair.SerializeAsString(), RatingPairOf(3).SerializeAsString());
  EXPECT_TRUE(store_->Read("set", 5, 10)->empty());
  EXPECT_TRUE(store_->Read("set", ~uint64_t{0}, 10)->empty());
}

TEST_F(RatingStoreTest, RefusesFilesThatItDoesNotUnderstand) {
  store_.reset();
  {
    auto database = Database::Open(path_);
    ASSERT_OK(database);
    ASSERT_OK((*database)->Execute("PRAGMA user_version = 9"));
  }
  const absl::Status newer = RatingStore::Open(path_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(newer)) << newer;
  EXPECT_THAT(newer.message(), HasSubstr("ratings.sqlite: format 9; this build knows up to 1"));
  const absl::Status damaged = RatingStore::Open(folder_.Write("damaged", std::string(8192, 'x'))).status();
  EXPECT_TRUE(absl::IsDataLoss(damaged)) << damaged;
}

// A child rates, says so after each confirmation, and is killed at an arbitrary moment.
TEST_F(RatingStoreTest, KeepsEveryConfirmedRatingOfAKilledProcess) {
  constexpr uint64_t kPairs = 20000;
  ASSERT_OK(store_->Create(RatingSetOf("set", 1), RatingPairs(kPairs)));
  store_.reset();
  uint64_t total = 0;
  for (const int confirmations : {1, 30, 100}) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = RatingStore::Open(path_);
      for (uint64_t pair = total; store.ok() && pair < kPairs; ++pair) {
        if (!(*store)->Rate("set", pair, RatingOf("ann", pair % 2 == 0 ? Rating::A : Rating::B)).ok()) break;
        if (write(pipe_ends[1], "x", 1) != 1) break;
      }
      _exit(1);
    }
    close(pipe_ends[1]);
    uint64_t confirmed = 0;
    char byte;
    while (confirmed < static_cast<uint64_t>(confirmations) && read(pipe_ends[0], &byte, 1) == 1) ++confirmed;
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself";
    while (read(pipe_ends[0], &byte, 1) == 1) ++confirmed;
    close(pipe_ends[0]);

    Open();
    const uint64_t there = store_->Get("set")->ratings();
    EXPECT_GE(there, total + confirmed);
    EXPECT_LE(there, total + confirmed + 1) << "at most the one that was under way";
    EXPECT_EQ(done(), there);
    total = there;
    const auto pairs = store_->Read("set", 0, kPairs);
    ASSERT_OK(pairs);
    for (uint64_t pair = 0; pair < total; ++pair) {
      ASSERT_EQ((*pairs)[pair].ratings.size(), 1u) << pair;
      ASSERT_EQ((*pairs)[pair].ratings[0].choice(), pair % 2 == 0 ? Rating::A : Rating::B);
    }
    store_.reset();
  }
}

}  // namespace
}  // namespace millrace::coordinator
