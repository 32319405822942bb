#include "common/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace millrace {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::Status Unavailable(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat("no shared memory: ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Map(int descriptor, size_t size) {
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) {
    close(descriptor);
    return Unavailable("mmap");
  }
  return std::unique_ptr<SharedMemory>(new SharedMemory(descriptor, static_cast<char*>(data), size));
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Create(size_t size) {
  const int descriptor = memfd_create("millrace", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) return Unavailable("memfd_create");
  // Allocated now: later there is nobody to tell that there is no room.
  if (fallocate(descriptor, 0, 0, static_cast<off_t>(size)) != 0 || fcntl(descriptor, F_ADD_SEALS, kSeals) != 0) {
    const absl::Status status = Unavailable("fallocate");
    close(descriptor);
    return status;
  }
  return Map(descriptor, size);
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Open(const std::string& name, size_t size) {
  const auto none = [&] { return absl::NotFoundError(absl::StrCat("there is no shared memory '", name, "' here")); };
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  int process = 0, number = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &process) || !absl::SimpleAtoi(parts[1], &number) ||
      process <= 0 || number < 0) {
    return none();
  }
  // Looked at before it is opened: to open a device or a pipe, which the name may lead to, does something to it.
  const int place = open(absl::StrCat("/proc/", process, "/fd/", number).c_str(), O_PATH | O_CLOEXEC);
  if (place < 0) return none();
  struct stat about;
  const bool fits = fstat(place, &about) == 0 && S_ISREG(about.st_mode) && about.st_uid == geteuid() &&
                    about.st_size == static_cast<off_t>(size);
  const int descriptor = fits ? open(absl::StrCat("/proc/self/fd/", place).c_str(), O_RDWR | O_CLOEXEC) : -1;
  close(place);
  if (descriptor < 0) return none();
  // Only memory has seals. Systems that let none of it be executed add one.
  const int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    close(descriptor);
    return none();
  }
  return Map(descriptor, size);
}

SharedMemory::~SharedMemory() {
  munmap(data_, size_);
  close(descriptor_);
}

std::string SharedMemory::name() const { return absl::StrCat(getpid(), "/", descriptor_); }

}  // namespace millrace
