#include "coordinator/unit_ledger.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::coordinator {
namespace {

using Verdict = UnitLedger::Verdict;

constexpr absl::Time kStart = absl::UnixEpoch();

std::vector<v1::WorkUnit> Units(uint64_t version, int training, int evaluation = 0) {
  std::vector<v1::WorkUnit> units;
  for (int i = 0; i < training + evaluation; ++i) {
    v1::WorkUnit& unit = units.emplace_back();
    unit.set_kind(i < training ? v1::WorkUnit::TRAIN : v1::WorkUnit::EVALUATE);
    unit.set_epoch(7);
    unit.set_version(version);
    unit.set_unit(static_cast<uint32_t>(i < training ? i : i - training));
  }
  return units;
}

v1::WorkResult Done(const UnitLedger::Lease& lease, double loss = 1) {
  v1::WorkResult result;
  result.set_lease(lease.id);
  result.set_epoch(lease.unit->epoch());
  result.set_kind(lease.unit->kind());
  result.set_version(lease.unit->version());
  result.set_unit(lease.unit->unit());
  result.set_loss_sum(loss);
  return result;
}

v1::WorkResult Failed(const UnitLedger::Lease& lease, bool retryable) {
  v1::WorkResult result = Done(lease);
  result.set_failed(true);
  result.set_retryable(retryable);
  result.set_error("disk on fire");
  return result;
}

TEST(UnitLedger, HandsOutEachUnitOnceInTheOrderOffered) {
  UnitLedger ledger;
  ledger.Offer(Units(3, 2, 1));
  std::vector<std::pair<v1::WorkUnit::Kind, uint32_t>> taken;
  while (const auto lease = ledger.Take("a", kStart)) taken.emplace_back(lease->unit->kind(), lease->unit->unit());
  EXPECT_THAT(taken,
              ::testing::ElementsAre(::testing::Pair(v1::WorkUnit::TRAIN, 0), ::testing::Pair(v1::WorkUnit::TRAIN, 1),
                                     ::testing::Pair(v1::WorkUnit::EVALUATE, 0)));
  EXPECT_FALSE(ledger.complete());
}

TEST(UnitLedger, ResultsComeInTheOrderOfferedWhoeverIsFirst) {
  UnitLedger ledger;
  ledger.Offer(Units(0, 3));
  const auto a = *ledger.Take("a", kStart), b = *ledger.Take("b", kStart), c = *ledger.Take("c", kStart);
  EXPECT_EQ(ledger.Report(Done(c, 30), kStart), Verdict::kAccepted);
  EXPECT_EQ(ledger.Report(Done(a, 10), kStart), Verdict::kAccepted);
  EXPECT_FALSE(ledger.complete());
  EXPECT_EQ(ledger.Report(Done(b, 20), kStart), Verdict::kAccepted);
  ASSERT_TRUE(ledger.complete());
  const auto results = ledger.TakeResults();
  EXPECT_EQ(results[0].loss_sum(), 10);
  EXPECT_EQ(results[1].loss_sum(), 20);
  EXPECT_EQ(results[2].loss_sum(), 30);
}

TEST(UnitLedger, ARepeatedResultCountsOnce) {
  UnitLedger ledger;
  ledger.Offer(Units(0, 2));
  const auto lease = *ledger.Take("a", kStart);
  EXPECT_EQ(ledger.Report(Done(lease, 1), kStart), Verdict::kAccepted);
  EXPECT_EQ(ledger.Report(Done(lease, 5), kStart), Verdict::kStale);
  EXPECT_FALSE(ledger.complete());
  EXPECT_EQ(ledger.TakeResults()[0].loss_sum(), 1);
}

TEST(UnitLedger, AnOverdueUnitIsGivenToAnotherAndTheFirstResultCounts) {
  UnitLedger ledger({.overdue = absl::Seconds(10), .slowness = 5});
  ledger.Offer(Units(0, 1));
  const auto slow = *ledger.Take("slow", kStart);
  EXPECT_EQ(ledger.Tick(kStart + absl::Seconds(9)), 0);
  EXPECT_FALSE(ledger.Take("other", kStart + absl::Seconds(9)).has_value());
  EXPECT_EQ(ledger.Tick(kStart + absl::Seconds(10)), 1);
  const auto other = ledger.Take("other", kStart + absl::Seconds(10));
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(other->unit->unit(), slow.unit->unit());
  EXPECT_NE(other->id, slow.id);
  EXPECT_EQ(ledger.Report(Done(slow, 1), kStart + absl::Seconds(11)), Verdict::kAccepted);
  EXPECT_TRUE(ledger.complete());
  EXPECT_EQ(ledger.Report(Done(*other, 1), kStart + absl::Seconds(12)), Verdict::kRepeated);
}

TEST(UnitLedger, SlowUnitsMoveTheTimeAtWhichALeaseIsOverdue) {
  UnitLedger ledger({.overdue = absl::Seconds(10), .slowness = 5});
  ledger.Offer(Units(0, 1));
  ledger.Report(Done(*ledger.Take("a", kStart)), kStart + absl::Seconds(8));
  const absl::Time later = kStart + absl::Minutes(5);
  ledger.Offer(Units(1, 1));
  ledger.Take("a", later);
  EXPECT_EQ(ledger.Tick(later + absl::Seconds(39)), 0);
  EXPECT_EQ(ledger.Tick(later + absl::Seconds(40)), 1);
}

TEST(UnitLedger, WhatAHolderHeldWaitsAgainWhenItGoes) {
  UnitLedger ledger;
  ledger.Offer(Units(0, 3));
  const auto first = *ledger.Take("a", kStart);
  ledger.Take("a", kStart);
  const auto kept = *ledger.Take("b", kStart);
  ledger.Report(Done(first), kStart);
  EXPECT_EQ(ledger.Release("a"), 1);
  const auto again = ledger.Take("b", kStart);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->unit->unit(), 1u);
  EXPECT_FALSE(ledger.Take("b", kStart).has_value());
  ledger.Report(Done(kept), kStart);
  ledger.Report(Done(*again), kStart);
  EXPECT_TRUE(ledger.complete());
}

TEST(UnitLedger, ResultsOfAnEarlierOfferAreStale) {
  UnitLedger ledger;
  ledger.Offer(Units(0, 1));
  const v1::WorkResult old = Done(*ledger.Take("a", kStart));
  ledger.Offer(Units(1, 1));
  EXPECT_EQ(ledger.Report(old, kStart), Verdict::kStale);
  const auto lease = *ledger.Take("a", kStart);
  EXPECT_GT(lease.id, old.lease());
  v1::WorkResult other = Done(lease);
  other.set_version(0);
  EXPECT_EQ(ledger.Report(other, kStart), Verdict::kStale);
  other = Done(lease);
  other.set_epoch(6);
  EXPECT_EQ(ledger.Report(other, kStart), Verdict::kStale);
  other = Done(lease);
  other.set_unit(1);
  EXPECT_EQ(ledger.Report(other, kStart), Verdict::kStale);
  EXPECT_FALSE(ledger.complete());
  EXPECT_EQ(ledger.Report(Done(lease), kStart), Verdict::kAccepted);
  EXPECT_TRUE(ledger.complete());
}

TEST(UnitLedger, AFailedUnitIsTriedAgainAfterGrowingDelays) {
  UnitLedger ledger({.first_delay = absl::Milliseconds(100), .attempts = 3});
  ledger.Offer(Units(0, 1));
  absl::Time now = kStart;
  EXPECT_EQ(ledger.Report(Failed(*ledger.Take("a", now), true), now), Verdict::kWaitsAgain);
  EXPECT_EQ(ledger.Tick(now + absl::Milliseconds(99)), 0);
  EXPECT_EQ(ledger.Tick(now + absl::Milliseconds(100)), 1);
  now += absl::Milliseconds(100);
  EXPECT_EQ(ledger.Report(Failed(*ledger.Take("b", now), true), now), Verdict::kWaitsAgain);
  EXPECT_EQ(ledger.Tick(now + absl::Milliseconds(199)), 0);
  EXPECT_EQ(ledger.Tick(now + absl::Milliseconds(200)), 1);
  EXPECT_EQ(ledger.failure(), "");
  EXPECT_EQ(ledger.Report(Failed(*ledger.Take("a", now), true), now), Verdict::kFailed);
  EXPECT_THAT(ledger.failure(), ::testing::HasSubstr("TRAIN unit 0 at version 0 failed 3 times: disk on fire"));
}

TEST(UnitLedger, AFailureThatIsNotRetryableEndsItAtOnce) {
  UnitLedger ledger;
  ledger.Offer(Units(4, 2));
  EXPECT_EQ(ledger.Report(Failed(*ledger.Take("a", kStart), false), kStart), Verdict::kFailed);
  EXPECT_THAT(ledger.failure(), ::testing::HasSubstr("disk on fire"));
  ledger.Offer(Units(5, 1));
  EXPECT_EQ(ledger.failure(), "");
}

TEST(UnitLedger, AReturnedLeaseIsAsIfItHadNeverBeen) {
  UnitLedger ledger;
  ledger.Offer(Units(0, 1));
  const auto lease = *ledger.Take("a", kStart);
  ledger.Return(lease.id);
  EXPECT_TRUE(ledger.available());
  EXPECT_EQ(ledger.Report(Done(lease), kStart), Verdict::kStale);
  EXPECT_TRUE(ledger.Take("b", kStart).has_value());
}

}  // namespace
}  // namespace millrace::coordinator
