#include "text/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::text {
namespace {
constexpr size_t kBufferBytes = 1 << 20;
}

absl::StatusOr<std::unique_ptr<NewFile>> NewFile::Create(std::string path) {
  auto file = std::unique_ptr<NewFile>(new NewFile(std::move(path)));
  file->file_ = open(file->beside().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file->file_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("creating ", file->beside()));
  return file;
}

NewFile::~NewFile() {
  if (file_ >= 0) close(file_);
  if (!committed_) unlink(beside().c_str());
}

absl::Status NewFile::Append(absl::string_view bytes) {
  absl::StrAppend(&buffer_, bytes);
  return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
}

absl::Status NewFile::Flush() {
  absl::string_view rest = buffer_;
  while (!rest.empty()) {
    const ssize_t count = write(file_, rest.data(), rest.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat("writing ", beside()));
    rest.remove_prefix(static_cast<size_t>(count));
  }
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status NewFile::Overwrite(absl::string_view bytes, off_t offset) {
  if (pwrite(file_, bytes.data(), bytes.size(), offset) == static_cast<ssize_t>(bytes.size())) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("writing ", beside()));
}

absl::Status NewFile::Commit() {
  MILLRACE_RETURN_IF_ERROR(Flush());
  if (fsync(file_) != 0 || rename(beside().c_str(), path_.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path_));
  }
  committed_ = true;
  return absl::OkStatus();
}

}  // namespace millrace::text
