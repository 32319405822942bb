#include "common/files.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <iterator>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using text::TemporaryFolder;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

size_t FilesIn(const std::string& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

// Files of this process can grow no larger, as on a full disk, while the object lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  sighandler_t handler_;
};

TEST(Files, WhatIsWrittenReadsBack) {
  const TemporaryFolder folder;
  const std::string bytes("a\0b\n", 4);
  ASSERT_OK(WriteFileAtomically(folder / "file", bytes));
  EXPECT_EQ(*ReadFile(folder / "file", 4), bytes);
  ASSERT_OK(WriteFileAtomically(folder / "file", ""));
  EXPECT_EQ(*ReadFile(folder / "file", 0), "");
  EXPECT_EQ(FilesIn(folder.path()), 1u) << "something was left beside the file";
  struct stat about;
  ASSERT_EQ(stat((folder / "file").c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0644u);
}

TEST(Files, AFailedWriteKeepsTheOldFileAndLeavesNothing) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("file", "old");
  {
    const FileSizeLimit limit(1000);
    const absl::Status status = WriteFileAtomically(path, std::string(5000, 'x'));
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(Message(status), HasSubstr(path));
  }
  EXPECT_EQ(*ReadFile(path, 100), "old");
  EXPECT_EQ(FilesIn(folder.path()), 1u);
  // Nor when the last step, the rename, is what fails.
  std::filesystem::create_directories(folder / "taken/by");
  const absl::Status status = WriteFileAtomically(folder / "taken", "new");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Message(status), HasSubstr(folder / "taken"));
  EXPECT_TRUE(std::filesystem::is_directory(folder / "taken/by"));
  EXPECT_EQ(FilesIn(folder.path()), 2u);
}

TEST(Files, ReadingIsBounded) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("file", "12345");
  EXPECT_EQ(*ReadFile(path, 5), "12345");
  const absl::Status status = ReadFile(path, 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr(path));
  EXPECT_THAT(Message(status), HasSubstr("5 bytes; at most 4"));
}

TEST(Files, ErrorsNameThePathAndTheReason) {
  const TemporaryFolder folder;
  const std::string missing = folder / "missing";
  for (const absl::Status& status : {ReadFile(missing, 10).status(), MappedFile::Open(missing).status(),
                                     SyncPath(missing), WriteFileAtomically(missing + "/file", "x")}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(Message(status), HasSubstr(missing));
    EXPECT_THAT(Message(status), HasSubstr("No such file"));
  }
  for (const absl::Status& status : {ReadFile(folder.path(), 10).status(), MappedFile::Open(folder.path()).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(folder.path() + " is not a file"));
  }
  EXPECT_EQ(ErrnoStatus(ENOSPC, "write", "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(EDQUOT, "write", "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(ErrnoStatus(ENOSPC, "write", "/a/b")), HasSubstr("cannot write /a/b: the disk is full"));
  EXPECT_EQ(ErrnoStatus(EACCES, "read", "x").code(), absl::StatusCode::kPermissionDenied);
}

TEST(Files, APipeIsRefusedAndNotWaitedFor) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(ReadFile(folder / "pipe", 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(folder / "pipe").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Files, FoldersAreMadeWithThoseAbove) {
  const TemporaryFolder folder;
  EXPECT_OK(MakeDirectories(folder / "a/b/c"));
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b/c"));
  EXPECT_OK(MakeDirectories(folder / "a/b"));
  EXPECT_OK(SyncPath(folder / "a/b"));
  const std::string file = folder.Write("file", "x");
  for (const std::string& path : {file, file + "/below"}) {
    const absl::Status status = MakeDirectories(path);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(Message(status), HasSubstr(path));
  }
}

TEST(Files, AMappedFileKeepsItsBytes) {
  const TemporaryFolder folder;
  const std::string bytes(10000, 'm');
  auto file = MappedFile::Open(folder.Write("file", bytes));
  ASSERT_OK(file);
  MappedFile moved = *std::move(file);
  EXPECT_EQ(moved.bytes(), bytes);
  // Writing the file anew puts another in its place; the mapping stays as it was.
  ASSERT_OK(WriteFileAtomically(folder / "file", "new"));
  EXPECT_EQ(moved.bytes(), bytes);
  auto empty = MappedFile::Open(folder.Write("empty", ""));
  ASSERT_OK(empty);
  EXPECT_EQ(empty->bytes(), "");
  *empty = std::move(moved);
  EXPECT_EQ(empty->bytes(), bytes);
}

}  // namespace
}  // namespace millrace
