// Reads files with a bound, and writes them so that a crash leaves the old or the new file, never half of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Says what failed: "cannot ACTION PATH: REASON". A full disk or an exhausted quota is RESOURCE_EXHAUSTED.
absl::Status ErrnoStatus(int error, absl::string_view action, absl::string_view path);

// The whole file. NOT_FOUND, PERMISSION_DENIED, …, or RESOURCE_EXHAUSTED when it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// Writes beside `path`, fsyncs, renames over `path` and fsyncs the folder. On failure `path` is as it was.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes);

// Makes the contents of a file, or the names in a folder, durable.
absl::Status SyncPath(const std::string& path);

// Makes `path` and the folders above it; OK if it is there.
absl::Status MakeDirectories(const std::string& path);

// A file mapped into memory, read only, for as long as the object lives.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  absl::string_view bytes() const { return {data_, size_}; }

 private:
  MappedFile(const char* data, size_t size) : data_(data), size_(size) {}
  const char* data_;  // of the mapping; null if the file is empty
  size_t size_;
};

}  // namespace millrace
