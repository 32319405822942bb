// Reads a file's bytes in order, unpacked if it is packed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace millrace::text {

enum class Packing { kPlain, kGzip, kZstd };

// By the path's ending: .gz, .zst, else plain.
Packing PackingOf(const std::string& path);

// Unpacking more than this from a byte, beyond the first kFreeBytes, is taken for a decompression bomb.
inline constexpr uint64_t kMaxExpansion = 400;
inline constexpr uint64_t kFreeBytes = 32 << 20;

// Used by one thread at a time.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Reads up to `size` bytes (at least one unless the end is reached): their number, 0 at the end. DATA_LOSS for packed
  // data that is damaged or ends early, RESOURCE_EXHAUSTED for a decompression bomb; errors name the file.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size) = 0;
};

// NOT_FOUND, PERMISSION_DENIED and the like, naming the path, if it cannot be read.
absl::StatusOr<std::unique_ptr<ByteStream>> OpenByteStream(const std::string& path);

// The same without unpacking.
absl::StatusOr<std::unique_ptr<ByteStream>> OpenPackedStream(const std::string& path);

}  // namespace millrace::text
