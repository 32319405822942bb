#include "coordinator/work_board.h"

#include <atomic>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::coordinator {
namespace {

constexpr absl::Time kNever = absl::InfiniteFuture();

std::shared_ptr<const v1::PhaseContext> Context(uint64_t epoch) {
  auto context = std::make_shared<v1::PhaseContext>();
  context->set_epoch(epoch);
  context->set_phase("pretrain");
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
        const auto units = board.Take(name, 1, kNever);
        if (!units.ok()) return;
        for (const v1::WorkUnit& unit : *units) board.Report({Done(unit)});
      }
    });
  }
  for (uint64_t version = 0; version < 200; ++version) {
    board.Offer(Units(1, version, 5));
    const auto results = board.Await(&Never);
    ASSERT_TRUE(results.ok());
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
  const v1::WorkUnit first = board.Take("a", 1, kNever)->front();
  EXPECT_EQ(first.context().phase(), "pretrain");
  EXPECT_TRUE(board.Take("a", 1, kNever)->front().has_context());  // nothing heard from the worker yet
  board.Report({Done(first)});
  EXPECT_FALSE(board.Take("a", 1, kNever)->front().has_context());
  board.SetContext(Context(2));
  board.Offer(Units(2, 0, 1));
  EXPECT_EQ(board.Take("a", 1, kNever)->front().context().epoch(), 2u);
}

TEST(WorkBoard, ADismissedWorkersUnitsGoToOthersAndItsCallsEnd) {
  WorkBoard board;
  board.SetContext(Context(1));
  board.Admit("a");
  board.Admit("b");
  board.Offer(Units(1, 0, 1));
  ASSERT_EQ(board.Take("a", 1, kNever)->size(), 1u);
  std::thread b([&] {
    const auto units = board.Take("b", 1, kNever);
    ASSERT_TRUE(units.ok());
    board.Report({Done(units->front())});
  });
  board.Dismiss("a");
  EXPECT_TRUE(board.Await(&Never).ok());
  b.join();
  EXPECT_EQ(board.Take("a", 1, kNever).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(board.counts().freed, 1u);

  std::thread waits([&] { EXPECT_EQ(board.Take("b", 1, kNever).status().code(), absl::StatusCode::kNotFound); });
  board.Dismiss("b");
  waits.join();
}

TEST(WorkBoard, WaitingForWorkEndsAtTheDeadlineWithNothing) {
  WorkBoard board;
  board.Admit("a");
  const auto units = board.Take("a", 1, absl::InfinitePast());
  ASSERT_TRUE(units.ok());
  EXPECT_TRUE(units->empty());
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
  v1::WorkResult result = Done(board.Take("a", 1, kNever)->front());
  result.set_failed(true);
  result.set_error("loss is not finite");
  board.Report({result});
  const auto results = board.Await(&Never);
  EXPECT_EQ(results.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(results.status().message(), testing::HasSubstr("loss is not finite"));
}

TEST(WorkBoard, AnOverdueUnitIsOfferedAgainByTick) {
  absl::Time now = absl::UnixEpoch();
  WorkBoard board({.overdue = absl::Seconds(5)}, [&now] { return now; });
  board.Admit("a");
  board.Admit("b");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  ASSERT_EQ(board.Take("a", 1, kNever)->size(), 1u);
  board.Tick();
  EXPECT_TRUE(board.Take("b", 1, absl::InfinitePast())->empty());
  now += absl::Seconds(5);
  board.Tick();
  const auto units = board.Take("b", 1, absl::InfinitePast());
  ASSERT_EQ(units->size(), 1u);
  board.Report({Done(units->front())});
  EXPECT_TRUE(board.Await(&Never).ok());
}

TEST(WorkBoard, UnitsThatNeverReachedTheWorkerAreHandedOutAgain) {
  WorkBoard board;
  board.Admit("a");
  board.SetContext(Context(1));
  board.Offer(Units(1, 0, 1));
  const auto units = *board.Take("a", 1, kNever);
  board.Return(units);
  EXPECT_EQ(board.Take("a", 1, absl::InfinitePast())->size(), 1u);
}

}  // namespace
}  // namespace millrace::coordinator
