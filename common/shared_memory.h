// Memory that two processes of one machine share.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace millrace {

// Anonymous, so that a killed process leaves nothing behind, and sealed, so that neither end can take away what the
// other has mapped. The other end opens it through /proc, which it can as the same user in the same PID namespace.
class SharedMemory {
 public:
  // Zeros. UNAVAILABLE: the kernel or the control group gives none.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(size_t size);
  // What another process of this user, or this one, made and named so; `name` may be anything. NOT_FOUND: there is no
  // such memory here, or it is not as Create makes it.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Open(const std::string& name, size_t size);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Good for Open as long as its maker has it. "PID/DESCRIPTOR".
  std::string name() const;
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  SharedMemory(int descriptor, char* data, size_t size) : descriptor_(descriptor), data_(data), size_(size) {}
  // Takes the descriptor.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Map(int descriptor, size_t size);

  const int descriptor_;
  char* const data_;
  const size_t size_;
};

}  // namespace millrace
