#include "common/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace {
namespace {

// Closes a descriptor at the end.
class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }
  int Release() { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_;
};

// Does not wait for somebody to write into a pipe of this name.
int OpenToRead(const std::string& path) { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }

absl::StatusOr<size_t> RegularSize(int descriptor, const std::string& path) {
  struct stat about;
  if (fstat(descriptor, &about) != 0) return ErrnoStatus(errno, "read", path);
  if (!S_ISREG(about.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is not a file"));
  return static_cast<size_t>(about.st_size);
}

absl::Status WriteAndSync(int descriptor, const std::string& path, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  if (fsync(descriptor) != 0) return ErrnoStatus(errno, "write", path);
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoStatus(int error, absl::string_view action, absl::string_view path) {
  const std::string what = absl::StrCat("cannot ", action, " ", path);
  if (error == ENOSPC || error == EDQUOT) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": the disk is full (", std::generic_category().message(error), ")"));
  }
  return absl::ErrnoToStatus(error, what);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  const Descriptor file(OpenToRead(path));
  if (file.get() < 0) return ErrnoStatus(errno, "read", path);
  MILLRACE_ASSIGN_OR_RETURN(const size_t size, RegularSize(file.get(), path));
  if (size > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(path, " has ", size, " bytes; at most ", max_bytes, " are read"));
  }
  std::string bytes(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = read(file.get(), bytes.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  bytes.resize(done);
  return bytes;
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes) {
  std::string beside = absl::StrCat(path, ".XXXXXX");
  Descriptor file(mkostemp(beside.data(), O_CLOEXEC));
  if (file.get() < 0) return ErrnoStatus(errno, "write", path);
  absl::Status status = WriteAndSync(file.get(), path, bytes);
  if (status.ok() && fchmod(file.get(), 0644) != 0) status = ErrnoStatus(errno, "write", path);
  if (close(file.Release()) != 0 && status.ok()) status = ErrnoStatus(errno, "write", path);
  if (status.ok() && rename(beside.c_str(), path.c_str()) != 0) status = ErrnoStatus(errno, "write", path);
  if (!status.ok()) {
    unlink(beside.c_str());
    return status;
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return SyncPath(folder.empty() ? "." : folder);
}

absl::Status SyncPath(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return ErrnoStatus(errno, "open", path);
  if (fsync(file.get()) != 0) return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus(error.value(), "make", path);
  return absl::OkStatus();
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const Descriptor file(OpenToRead(path));
  if (file.get() < 0) return ErrnoStatus(errno, "read", path);
  MILLRACE_ASSIGN_OR_RETURN(const size_t size, RegularSize(file.get(), path));
  if (size == 0) return MappedFile(nullptr, 0);
  void* const data = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map", path);
  return MappedFile(static_cast<const char*>(data), size);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
}

}  // namespace millrace
