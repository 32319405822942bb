// Sums bytes up: SHA-256 for what is kept, CRC-32C for what travels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace {

// SHA-256 (FIPS 180-4) of bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  Sha256& Update(absl::string_view bytes);
  Sha256& Update(const void* bytes, size_t size) {
    return Update(absl::string_view(static_cast<const char*>(bytes), size));
  }
  // 64 lower-case hexadecimal digits. The sum starts anew after it.
  std::string HexDigest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(absl::string_view bytes);

// CRC-32C (Castagnoli, RFC 3720) of `size` bytes, continuing `initial`, the sum of what came before them.
uint32_t Crc32c(const void* bytes, size_t size, uint32_t initial = 0);

}  // namespace millrace
