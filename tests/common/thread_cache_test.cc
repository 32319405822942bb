#include "common/thread_cache.h"

#include <atomic>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(ThreadCache, WorkOneAfterAnotherIsDoneByOneThread) {
  ThreadCache cache;
  std::set<std::thread::id> threads;
  for (int i = 0; i < 100; ++i) {
    cache.Start([&] { threads.insert(std::this_thread::get_id()); }).Join();
  }
  EXPECT_EQ(threads.size(), 1);
  EXPECT_FALSE(threads.contains(std::this_thread::get_id()));
}

TEST(ThreadCache, WorkAtOnceHasAThreadEach) {
  ThreadCache cache;
  for (int round = 0; round < 3; ++round) {
    // None returns before all have begun.
    std::atomic<int> begun = 0;
    absl::Notification all;
    std::vector<ThreadCache::Work> works;
    for (int i = 0; i < 5; ++i) {
      works.push_back(cache.Start([&] {
        if (++begun == 5) all.Notify();
        all.WaitForNotification();
      }));
    }
    works.clear();
    EXPECT_EQ(begun, 5);
  }
}

TEST(ThreadCache, WorkIsWaitedForWhenItIsDroppedOrReplaced) {
  ThreadCache cache;
  std::atomic<int> done = 0;
  const auto slow = [&] {
    absl::Notification never;
    never.WaitForNotificationWithTimeout(absl::Milliseconds(20));
    ++done;
  };
  {
    ThreadCache::Work work = cache.Start(slow);
    EXPECT_TRUE(work.joinable());
    work = cache.Start(slow);
    EXPECT_GE(done, 1);
    ThreadCache::Work other = std::move(work);
    EXPECT_FALSE(work.joinable());  // NOLINT(bugprone-use-after-move)
  }
  EXPECT_EQ(done, 2);
}

TEST(ThreadCache, ManyThreadsMayUseIt) {
  ThreadCache cache;
  std::atomic<int> done = 0;
  std::vector<std::thread> users;
  for (int user = 0; user < 4; ++user) {
    users.emplace_back([&] {
      for (int i = 0; i < 200; ++i) cache.Start([&] { ++done; }).Join();
    });
  }
  for (std::thread& user : users) user.join();
  EXPECT_EQ(done, 800);
}

}  // namespace
}  // namespace millrace
