#include "ps/cuts.h"

#include <map>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

constexpr size_t kBlockBytes = 100;

// Blocks whose bytes are their version's letter.
class CutsTest : public ::testing::Test {
 protected:
  static std::string At(uint64_t version) { return std::string(kBlockBytes, static_cast<char>('a' + version)); }

  bool Secure(uint32_t block, bool wait) {
    return cuts_.Secure(version_, block, 1, kBlockBytes, wait, [&](uint32_t copied, v1::SnapshotReply* copy) {
      copy->set_weights(At(blocks_[copied]));
      ++copies_;
    });
  }
  // Changes a block in a step; false if there was no room for a copy.
  bool Change(uint32_t block, bool wait = false) {
    if (!Secure(block, wait)) return false;
    blocks_[block] = version_ + 1;
    return true;
  }
  absl::StatusOr<std::string> Read(Cuts::Cut* cut, uint32_t block) {
    v1::SnapshotReply reply;
    const absl::Status taken = cut->Take(
        block,
        [&](v1::SnapshotReply* now) {
          if (blocks_[block] != cut->version()) return false;
          now->set_weights(At(blocks_[block]));
          return true;
        },
        &reply);
    if (!taken.ok()) return taken;
    return reply.weights();
  }

  Cuts cuts_{{.limit_bytes = 2 * kBlockBytes, .patience = absl::Milliseconds(100), .most_readers = 3}};
  uint64_t version_ = 0;
  std::map<uint32_t, uint64_t> blocks_;  // the version that each is at
  int copies_ = 0;
};

TEST_F(CutsTest, NobodyReadsNothingIsCopied) {
  EXPECT_TRUE(Change(0));
  EXPECT_EQ(copies_, 0);
}

TEST_F(CutsTest, OnlyWhatIsStillToBeReadIsCopied) {
  auto cut = *cuts_.Open(0);
  EXPECT_EQ(*Read(cut.get(), 0), At(0));
  EXPECT_TRUE(Change(0));
  EXPECT_EQ(copies_, 0);
  EXPECT_TRUE(Change(1));
  EXPECT_EQ(copies_, 1);
  EXPECT_EQ(cuts_.bytes(), kBlockBytes);
  EXPECT_EQ(*Read(cut.get(), 1), At(0));
  EXPECT_EQ(cuts_.bytes(), 0u);
}

TEST_F(CutsTest, LaterStepsChangeNothingOfAHeldVersion) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(1));
  version_ = 1;
  auto later = *cuts_.Open(1);
  EXPECT_TRUE(Change(1));
  EXPECT_EQ(*Read(cut.get(), 1), At(0));
  EXPECT_EQ(*Read(later.get(), 1), At(1));
  EXPECT_EQ(cuts_.bytes(), 0u);
}

TEST_F(CutsTest, CopiesStayWithinTheLimit) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(0));
  EXPECT_TRUE(Change(1));
  EXPECT_FALSE(Change(2));
  EXPECT_EQ(*Read(cut.get(), 0), At(0));
  EXPECT_TRUE(Change(2));
  EXPECT_EQ(cuts_.bytes(), 2 * kBlockBytes);
}

TEST_F(CutsTest, StepWaitsUntilTheReaderMakesRoom) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(0));
  EXPECT_TRUE(Change(1));
  bool secured = false;
  std::thread step([&] { secured = Secure(2, /*wait=*/true); });
  EXPECT_EQ(*Read(cut.get(), 1), At(0));
  step.join();
  EXPECT_TRUE(secured);
  EXPECT_EQ(*Read(cut.get(), 0), At(0));
}

TEST_F(CutsTest, ReaderThatStandsStillLosesItsVersion) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(0));
  EXPECT_TRUE(Change(1));
  EXPECT_TRUE(Change(2, /*wait=*/true));
  EXPECT_EQ(cuts_.bytes(), 0u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Read(cut.get(), 0).status()));
}

TEST_F(CutsTest, ReaderThatGoesFreesItsCopies) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(0));
  EXPECT_GT(cuts_.bytes(), 0u);
  cut.reset();
  EXPECT_EQ(cuts_.bytes(), 0u);
  EXPECT_TRUE(Change(1));
  EXPECT_EQ(copies_, 1);
}

TEST_F(CutsTest, ReadersAreLimited) {
  auto a = cuts_.Open(0), b = cuts_.Open(0), c = cuts_.Open(0);
  EXPECT_TRUE(absl::IsResourceExhausted(cuts_.Open(0).status()));
  b->reset();
  EXPECT_OK(cuts_.Open(0));
}

TEST_F(CutsTest, ClosingEndsReadersAndWaitingSteps) {
  auto cut = *cuts_.Open(0);
  EXPECT_TRUE(Change(0));
  EXPECT_TRUE(Change(1));
  bool secured = true;
  std::thread step([&] { secured = cuts_.Secure(0, 2, 1, kBlockBytes, true, [](uint32_t, v1::SnapshotReply*) {}); });
  cuts_.Close(absl::UnavailableError("over"));
  step.join();
  EXPECT_FALSE(secured);
  EXPECT_EQ(cuts_.bytes(), 0u);
  EXPECT_TRUE(absl::IsUnavailable(Read(cut.get(), 0).status()));
  EXPECT_TRUE(absl::IsUnavailable(cuts_.Open(0).status()));
}

}  // namespace
}  // namespace millrace::ps
