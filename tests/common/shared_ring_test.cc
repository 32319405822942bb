#include "common/shared_ring.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/philox.h"
#include "common/shared_memory.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {
namespace {

bool Always() { return true; }
bool Never() { return false; }

class SharedRingTest : public ::testing::Test {
 protected:
  SharedRingTest() {
    auto made = SharedMemory::Create(SharedRing::kBytes);
    EXPECT_OK(made);
    memory_ = *std::move(made);
  }

  // Of frame `i`: now none, now as large as can be.
  static size_t SizeOf(uint64_t i) {
    const uint32_t drawn = Philox(1)(0, i)[0];
    return i % 50 == 0 ? SharedRing::kMostValues : i % 7 == 0 ? 0 : drawn % (i % 3 == 0 ? 300'000 : 3000);
  }
  static void Write(SharedRing* ring, uint64_t frames) {
    for (uint64_t i = 0; i < frames; ++i) {
      const auto room = ring->Reserve(SizeOf(i), &Always);
      ASSERT_OK(room);
      std::memset(*room, static_cast<int>(i % 251), SizeOf(i));
      ring->Commit(absl::StrCat("frame ", i));
    }
  }
  static void Read(SharedRing* ring, uint64_t frames) {
    for (uint64_t i = 0; i < frames; ++i) {
      const auto frame = ring->Next(&Always);
      ASSERT_OK(frame);
      ASSERT_EQ(frame->about, absl::StrCat("frame ", i));
      ASSERT_EQ(frame->values, std::string(SizeOf(i), static_cast<char>(i % 251)));
      ring->Release();
    }
  }
  // What the reader says once the memory holds what `spoil` makes of a good frame.
  absl::Status Spoilt(void (*spoil)(char* memory)) {
    std::memset(memory_->data(), 0, memory_->size());
    SharedRing writer(memory_->data()), reader(memory_->data());
    EXPECT_OK(writer.Reserve(1000, &Always));
    writer.Commit("about");
    spoil(memory_->data());
    return reader.Next(&Never).status();
  }

  std::unique_ptr<SharedMemory> memory_;
};

constexpr size_t kFrame = SharedRing::kBytes - SharedRing::kRoomBytes;

template <typename Number>
void Put(char* to, Number number) {
  std::memcpy(to, &number, sizeof(number));
}

TEST_F(SharedRingTest, BringsEveryFrameInOrderBetweenThreads) {
  auto other = SharedMemory::Open(memory_->name(), SharedRing::kBytes);
  ASSERT_OK(other);
  SharedRing writer(memory_->data()), reader((*other)->data());
  std::thread writes([&] { Write(&writer, 2000); });
  Read(&reader, 2000);
  writes.join();
}

TEST_F(SharedRingTest, BringsEveryFrameInOrderBetweenProcesses) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto opened = SharedMemory::Open(memory_->name(), SharedRing::kBytes);
    if (!opened.ok()) _exit(1);
    SharedRing writer((*opened)->data());
    Write(&writer, 1000);
    _exit(0);
  }
  SharedRing reader(memory_->data());
  Read(&reader, 1000);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(SharedRingTest, WaitingEndsWhenItIsGivenUp) {
  SharedRing writer(memory_->data()), reader(memory_->data());
  const absl::Time begun = absl::Now();
  EXPECT_TRUE(absl::IsCancelled(reader.Next(&Never).status()));
  // Two frames fill it.
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(writer.Reserve(SharedRing::kMostValues - 1000, &Always));
    writer.Commit("x");
  }
  EXPECT_TRUE(absl::IsCancelled(writer.Reserve(SharedRing::kMostValues, &Never).status()));
  EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
  // Nothing was lost: both come, and then there is room.
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(reader.Next(&Always));
    reader.Release();
  }
  EXPECT_OK(writer.Reserve(SharedRing::kMostValues, &Never));
}

// A call may end right after its last frame.
// Soon, however long it has waited.
TEST_F(SharedRingTest, AnInterruptHasWhoeverWaitsAskWhetherToGoOn) {
  SharedRing writer(memory_->data()), reader(memory_->data());
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(writer.Reserve(SharedRing::kMostValues, &Always));
    writer.Commit("");
  }
  absl::Duration shortest = absl::InfiniteDuration();
  for (int round = 0; round < 3; ++round) {
    std::atomic<int> asked = 0;
    std::atomic<bool> goes_on = true;
    std::thread waits([&] {
      const auto ask = [&] {
        ++asked;
        return goes_on.load();
      };
      EXPECT_TRUE(absl::IsCancelled(writer.Reserve(1, ask).status()));
    });
    while (asked < 4) std::this_thread::yield();  // it sleeps 160 ms now
    const absl::Time begun = absl::Now();
    goes_on = false;
    reader.Interrupt();
    waits.join();
    shortest = std::min(shortest, absl::Now() - begun);
  }
  EXPECT_LT(shortest, absl::Milliseconds(80));
}

TEST_F(SharedRingTest, WhatCameBeforeItWasGivenUpIsThere) {
  SharedRing writer(memory_->data()), reader(memory_->data());
  const auto frame = reader.Next([&] {
    EXPECT_OK(writer.Reserve(3, &Never));
    writer.Commit("last");
    return false;
  });
  ASSERT_OK(frame);
  EXPECT_EQ(frame->about, "last");
}

// Wherever the frames before it ended.
TEST_F(SharedRingTest, TakesTheLargestFrameAtEveryPlace) {
  SharedRing writer(memory_->data()), reader(memory_->data());
  for (size_t before = 0; before < 2 * SharedRing::kMostValues; before += before % 4096 == 0 ? 64 : 1984) {
    for (const size_t size : {std::min(before, SharedRing::kMostValues), SharedRing::kMostValues}) {
      ASSERT_OK(writer.Reserve(size, &Never)) << size << " bytes after " << before;
      writer.Commit("x");
      ASSERT_OK(reader.Next(&Never));
      reader.Release();
    }
  }
  for (size_t size = SharedRing::kMostValues - 1024; size <= SharedRing::kMostValues; size += 64) {
    for (const size_t each : {size, SharedRing::kMostValues}) {
      ASSERT_OK(writer.Reserve(each, &Never)) << each << " bytes after " << size;
      writer.Commit("x");
      ASSERT_OK(reader.Next(&Never));
      reader.Release();
    }
  }
}

// Whatever the other end writes, nothing outside the ring is looked at.
TEST_F(SharedRingTest, RefusesNonsense) {
  EXPECT_OK(Spoilt([](char*) {}));
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory, uint64_t{64}); })));  // ends in the frame
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory, uint64_t{3}); })));
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory, ~uint64_t{0}); })));  // more than there is
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory, uint64_t{1} << 21); })));
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory + kFrame, 0xFFFFFFFEu); })));  // values' size
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory + kFrame, 0xFFFFFFFFu); })));  // nothing behind it
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory + kFrame, 5000u); })));
  EXPECT_TRUE(absl::IsDataLoss(Spoilt([](char* memory) { Put(memory + kFrame + 4, 113u); })));  // what is said
  // A reader that claims to be ahead gives the writer no room.
  std::memset(memory_->data(), 0, memory_->size());
  SharedRing writer(memory_->data());
  Put(memory_->data() + 64, uint64_t{1} << 40);
  EXPECT_TRUE(absl::IsCancelled(writer.Reserve(10, &Never).status()));
}

}  // namespace
}  // namespace millrace
