#include "coordinator/work_board.h"

#include <atomic>
#include <set>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "coordinator/take.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

std::shared_ptr<const v1::PhaseContext> Context(uint64_t epoch) {
  auto context = std::make_shared<v1::PhaseContext>();
  context->set_epoch(epoch);
  context->mutable_phase()->set_name("pretrain");
  return context;
}

std::vector<v1::WorkUnit> Units(uint64_t epoch, uint64_t version, uint32_t count) {
  std::vector<v1::WorkUnit> units(count);
  for (uint32_t i = 0; i < count; ++i) {
    units[i].set_kind(v1::WorkUnit::TRAIN);
    units[i].set_epoch(epoch);
    units[i].set_version(version);
    units[i].set_unit(i);
  }
  return units;
}

v1::WorkResult Done(const v1::WorkUnit& unit) {
  v1::WorkResult result;
  result.set_lease(unit.lease());
  result.set_epoch(unit.epoch());
  result.set_kind(unit.kind());
  result.set_version(unit.version());
  result.set_unit(unit.unit());
  result.set_loss_sum(unit.unit());
  return result;
}

bool Never() { return false; }

TEST(WorkBoard, WorkersThatWaitAreWokenByAnOfferAndTheRunnerByTheLastResult) {
  WorkBoard board;
  board.SetContext(Context(1));
  std::vector<std::thread> workers;
  std::atomic<bool> over = false;
  for (const std::string name : {"a", "b", "c"}) {
    board.Admit(name);
    workers.emplace_back([&board, &over, name] {
      while (!over) {
        const auto units = Take(&board, name);
        if (!units.ok()) return;
        for (const v1::WorkUnit& unit : *units) board.Report(name, {Done(unit)});
      }
    });
  }
  for (uint64_t version = 0; version < 200; ++version) {
    board.Offer(Units(1, version, 5));
    const auto results = board.Await(&Never);
    ASSERT_OK(results);
    ASSERT_EQ(results->size(), 5u);
    for (uint32_t i = 0; i < 5; ++i) {
      ASSERT_EQ((*results)[i].unit(), i);
      ASSERT_EQ((*results)[i].version(), version);
    }
  }
  over = true;
  for (const char* name : {"a", "b", "c"}) board.Dismiss(name);
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(board.counts().accepted, 1000u);
}

TEST(WorkBoard, TheContextComesUntilAResultOfItsEpochShowsThatTheWorkerHasIt) {
  WorkBoard board;
  board.Admit("a");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 3));
  const v1::WorkUnit first = Take(&board, "a")->front();
  EXPECT_EQ(first.context().phase().name(), "pretrain");
  EXPECT_TRUE(Take(&board, "a")->front().has_context());  // nothing heard from the worker yet
  board.Report("a", {Done(first)});
  EXPECT_FALSE(Take(&board, "a")->front().has_context());
  board.SetContext(Context(2));
  board.Offer(Units(2, 0, 1));
  EXPECT_EQ(Take(&board, "a")->front().context().epoch(), 2u);
}

TEST(WorkBoard, ADismissedWorkersUnitsGoToOthersAndItsCallsEnd) {
  WorkBoard board;
  board.SetContext(Context(1));
  board.Admit("a");
  board.Admit("b");
  board.Offer(Units(1, 0, 1));
  ASSERT_EQ(Take(&board, "a")->size(), 1u);
  std::thread b([&] {
    const auto units = Take(&board, "b");
    ASSERT_OK(units);
    board.Report("b", {Done(units->front())});
  });
  board.Dismiss("a");
  EXPECT_OK(board.Await(&Never));
  b.join();
  EXPECT_EQ(Take(&board, "a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(board.counts().freed, 1u);

  std::thread waits([&] { EXPECT_EQ(Take(&board, "b").status().code(), absl::StatusCode::kNotFound); });
  board.Dismiss("b");
  waits.join();
}

TEST(WorkBoard, WaitingForWorkEndsAtTheDeadlineWithNothing) {
  std::atomic<int> now = 0;
  WorkBoard board({}, [&now] { return absl::FromUnixSeconds(now); });
  board.Admit("a");
  const auto none = Take(&board, "a", absl::InfinitePast());
  ASSERT_OK(none);
  EXPECT_TRUE(none->empty());

  absl::Notification answered;
  board.Take("a", 1, absl::FromUnixSeconds(5), [&](absl::StatusOr<std::vector<v1::WorkUnit>> units) {
    EXPECT_TRUE(units.ok() && units->empty());
    answered.Notify();
  });
  now = 4;
  board.Tick();
  EXPECT_FALSE(answered.HasBeenNotified());
  now = 5;
  board.Tick();
  answered.WaitForNotification();
}

TEST(WorkBoard, AThousandMayWaitAtOnceAndAreServedInTurn) {
  constexpr uint32_t kWorkers = 1000;
  WorkBoard board;
  board.SetContext(Context(1));
  std::vector<uint32_t> served;
  absl::BlockingCounter waiting(kWorkers + 1);
  for (uint32_t i = 0; i <= kWorkers; ++i) {
    const std::string name = std::to_string(i);
    board.Admit(name);
    // All from this one thread: none holds it.
    board.Take(name, 1, absl::InfiniteFuture(), [&, i](absl::StatusOr<std::vector<v1::WorkUnit>> units) {
      EXPECT_EQ(units.ok(), i < kWorkers);
      if (units.ok()) served.push_back(units->front().unit());
      waiting.DecrementCount();
    });
  }
  board.Dismiss(std::to_string(kWorkers));
  board.Offer(Units(1, 0, kWorkers));
  waiting.Wait();
  ASSERT_EQ(served.size(), kWorkers);
  for (uint32_t i = 0; i < kWorkers; ++i) EXPECT_EQ(served[i], i);
}

TEST(WorkBoard, AnInterruptedWaitEnds) {
  WorkBoard board;
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  std::atomic<bool> interrupted = false;
  std::thread runner([&] {
    EXPECT_EQ(board.Await([&] { return interrupted.load(); }).status().code(), absl::StatusCode::kCancelled);
  });
  interrupted = true;
  board.Wake();
  runner.join();
}

TEST(WorkBoard, AUnitThatCannotBeDoneEndsTheWaitWithItsReason) {
  WorkBoard board;
  board.Admit("a");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 2));
  v1::WorkResult result = Done(Take(&board, "a")->front());
  result.set_failed(true);
  result.set_error("loss is not finite");
  board.Report("a", {result});
  const auto results = board.Await(&Never);
  EXPECT_EQ(results.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(results.status().message(), ::testing::HasSubstr("loss is not finite"));
}

TEST(WorkBoard, AnOverdueUnitIsOfferedAgainByTick) {
  absl::Time now = absl::UnixEpoch();
  WorkBoard board({.overdue = absl::Seconds(5)}, [&now] { return now; });
  board.Admit("a");
  board.Admit("b");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  ASSERT_EQ(Take(&board, "a")->size(), 1u);
  board.Tick();
  EXPECT_TRUE(Take(&board, "b", absl::InfinitePast())->empty());
  now += absl::Seconds(5);
  board.Tick();
  const auto units = Take(&board, "b", absl::InfinitePast());
  ASSERT_EQ(units->size(), 1u);
  board.Report("b", {Done(units->front())});
  EXPECT_OK(board.Await(&Never));
}

TEST(WorkBoard, AWorkerSpeaksForItsOwnUnitsAlone) {
  WorkBoard board;
  board.Admit("a");
  board.Admit("b");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  const v1::WorkUnit unit = Take(&board, "a")->front();
  v1::WorkResult failed = Done(unit);
  failed.set_failed(true);
  board.Report("b", {failed});
  board.Report("b", {Done(unit)});
  board.Report("nobody", {Done(unit)});
  EXPECT_EQ(board.counts().accepted, 0u);
  EXPECT_EQ(board.counts().failed, 0u);
  EXPECT_EQ(board.counts().stale, 3u);
  board.Report("a", {Done(unit)});
  EXPECT_OK(board.Await(&Never));
}

TEST(WorkBoard, UnitsThatNeverReachedTheWorkerAreHandedOutAgain) {
  WorkBoard board;
  board.Admit("a");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  const auto units = *Take(&board, "a");
  board.Return(units);
  EXPECT_EQ(Take(&board, "a", absl::InfinitePast())->size(), 1u);
}

}  // namespace
}  // namespace millrace::coordinator
