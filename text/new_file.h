// Writes a large file in pieces beside its place.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::text {

// A file written in one go beside its place; Commit moves it there. Removed if that never happens. Used by one thread.
class NewFile {
 public:
  // Errors of all methods name the path.
  static absl::StatusOr<std::unique_ptr<NewFile>> Create(std::string path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Where it is until Commit.
  std::string beside() const { return path_ + ".new"; }

  absl::Status Append(absl::string_view bytes);
  // What was appended can be read at beside() after it.
  absl::Status Flush();
  // Requires a flushed file that holds so much.
  absl::Status Overwrite(absl::string_view bytes, off_t offset);
  absl::Status Commit();

 private:
  explicit NewFile(std::string path) : path_(std::move(path)) {}

  const std::string path_;
  int file_ = -1;
  bool committed_ = false;
  std::string buffer_;
};

}  // namespace millrace::text
