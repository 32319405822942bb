// Tells whether a file is the one that was read before.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace millrace {

// By which a file is known: what `touch`, a write or a replacement changes.
struct FileState {
  uint64_t device = 0, inode = 0;
  int64_t size = 0, seconds = 0, nanoseconds = 0;  // the last two: of the last change

  // Zeros, and errno says why, if there is none.
  static FileState Of(const std::string& path) {
    struct stat about;
    if (stat(path.c_str(), &about) != 0) return {};
    return {about.st_dev, about.st_ino, about.st_size, about.st_mtim.tv_sec, about.st_mtim.tv_nsec};
  }
  bool there() const { return inode != 0; }
  bool operator==(const FileState&) const = default;
};

}  // namespace millrace
