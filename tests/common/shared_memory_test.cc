#include "common/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {
namespace {

constexpr size_t kSize = 1 << 16;

TEST(SharedMemory, IsTheSameForBothEnds) {
  const auto made = SharedMemory::Create(kSize);
  ASSERT_OK(made);
  const auto opened = SharedMemory::Open((*made)->name(), kSize);
  ASSERT_OK(opened);
  ASSERT_NE((*made)->data(), (*opened)->data());
  (*made)->data()[kSize - 1] = 'a';
  EXPECT_EQ((*opened)->data()[kSize - 1], 'a');
  EXPECT_EQ((*opened)->data()[0], '\0');
}

TEST(SharedMemory, IsSeenByAnotherProcessAndGoesWithTheLastOne) {
  const auto made = SharedMemory::Create(kSize);
  ASSERT_OK(made);
  const std::string name = (*made)->name();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto opened = SharedMemory::Open(name, kSize);
    if (opened.ok()) (*opened)->data()[5] = 'c';
    _exit(opened.ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ((*made)->data()[5], 'c');
}

TEST(SharedMemory, CannotBeTakenAwayByTheOtherEnd) {
  const auto made = SharedMemory::Create(kSize);
  ASSERT_OK(made);
  const std::string number = (*made)->name().substr((*made)->name().find('/') + 1);
  const int descriptor = open(absl::StrCat("/proc/self/fd/", number).c_str(), O_RDWR);
  ASSERT_GE(descriptor, 0);
  EXPECT_NE(ftruncate(descriptor, 0), 0);
  EXPECT_NE(ftruncate(descriptor, 2 * kSize), 0);
  close(descriptor);
}

// A name that comes over the network must lead to nothing but such memory.
TEST(SharedMemory, OpensNothingElse) {
  const auto made = SharedMemory::Create(kSize);
  ASSERT_OK(made);
  FILE* const file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(ftruncate(fileno(file), kSize), 0);
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, kSize), 0);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  for (const std::string& name :
       {std::string(), std::string("x"), std::string("1"), std::string("-1/0"), std::string("1/2/3"),
        absl::StrCat("self/", fileno(file)), absl::StrCat(getpid(), "/../../../etc/passwd"),
        absl::StrCat(getpid(), "/", fileno(file)), absl::StrCat(getpid(), "/", unsealed),
        absl::StrCat(getpid(), "/", pipe_ends[0]), absl::StrCat(getpid(), "/9999"), std::string("999999999/1")}) {
    EXPECT_TRUE(absl::IsNotFound(SharedMemory::Open(name, kSize).status())) << name;
  }
  EXPECT_TRUE(absl::IsNotFound(SharedMemory::Open((*made)->name(), 2 * kSize).status()));
  // Nothing has been done to what was looked at: nobody writes into the pipe.
  EXPECT_EQ(fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK), 0);
  close(pipe_ends[1]);
  char byte;
  EXPECT_EQ(read(pipe_ends[0], &byte, 1), 0);
  close(unsealed);
  close(pipe_ends[0]);
  std::fclose(file);
}

// Root could open it.
TEST(SharedMemory, OfAnotherUserIsNobodys) {
  if (geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can make memory as another user; run the tests as root too";
  int names[2], ends[2];
  ASSERT_EQ(pipe(names), 0);
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte;
    close(ends[1]);
    if (setuid(65534) != 0) _exit(1);
    const auto made = SharedMemory::Create(kSize);
    if (!made.ok()) _exit(1);
    const std::string name = (*made)->name();
    if (write(names[1], name.data(), name.size()) < 0) _exit(1);
    _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);  // until the other end is closed
  }
  char name[64];
  const ssize_t size = read(names[0], name, sizeof(name));
  ASSERT_GT(size, 0);
  EXPECT_TRUE(absl::IsNotFound(SharedMemory::Open(std::string(name, static_cast<size_t>(size)), kSize).status()));
  for (const int end : {names[0], names[1], ends[0], ends[1]}) close(end);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace millrace
