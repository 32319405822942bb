#include "cli/new_folder.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status.h"

namespace millrace::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kInterrupted = 130;

void Remove(const std::string& path) {
  std::error_code ignored;
  if (!path.empty()) fs::remove_all(path, ignored);
}

}  // namespace

NewFolder::NewFolder() {
  pthread_sigmask(SIG_SETMASK, nullptr, &signals_before_);
  stop_ = std::make_unique<StopSignal>();
}

NewFolder::~NewFolder() {
  stop_->Tell(nullptr);
  Remove(path_);
  const bool asked = stop_->asked();
  stop_.reset();
  pthread_sigmask(SIG_SETMASK, &signals_before_, nullptr);
  if (asked) _exit(kInterrupted);
}

absl::StatusOr<std::unique_ptr<NewFolder>> NewFolder::Make(const std::string& prefix, mode_t mode) {
  std::unique_ptr<NewFolder> folder(new NewFolder);
  for (int number = 0;; ++number) {
    const std::string path = absl::StrCat(prefix, getpid(), "-", number);
    if (mkdir(path.c_str(), mode) == 0) {
      folder->path_ = path;
      break;
    }
    if (errno != EEXIST || number == 1000) return ErrnoStatus(errno, "make", path);
  }
  folder->stop_->Tell([path = folder->path_] {
    Remove(path);
    _exit(kInterrupted);
  });
  return folder;
}

absl::Status NewFolder::MoveTo(const std::string& target) {
  MILLRACE_RETURN_IF_ERROR(SyncPath(path_));
  stop_->Tell(nullptr);
  // rename(2) would replace an empty folder.
  std::error_code error;
  if (fs::exists(fs::symlink_status(target, error)) || rename(path_.c_str(), target.c_str()) != 0) {
    const int reason = fs::exists(fs::symlink_status(target, error)) ? EEXIST : errno;
    if (reason == EEXIST) return absl::AlreadyExistsError(absl::StrCat(target, " exists already"));
    return ErrnoStatus(reason, "make", target);
  }
  path_.clear();
  const std::string above = fs::path(target).parent_path().string();
  return SyncPath(above.empty() ? "." : above);
}

}  // namespace millrace::cli
