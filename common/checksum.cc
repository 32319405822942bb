#include "common/checksum.h"

#include <nmmintrin.h>
#include <openssl/evp.h>

#include <array>
#include <cstring>

#include "absl/strings/escaping.h"

namespace millrace {

struct Sha256::Context {
  Context() : digest(EVP_MD_CTX_new()) { EVP_DigestInit_ex(digest, EVP_sha256(), nullptr); }
  ~Context() { EVP_MD_CTX_free(digest); }
  EVP_MD_CTX* const digest;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

Sha256& Sha256::Update(absl::string_view bytes) {
  EVP_DigestUpdate(context_->digest, bytes.data(), bytes.size());
  return *this;
}

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context_->digest, digest, &size);
  EVP_DigestInit_ex(context_->digest, EVP_sha256(), nullptr);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

std::string Sha256Hex(absl::string_view bytes) { return Sha256().Update(bytes).HexDigest(); }

namespace {

// The CRC32 instruction has a latency of three cycles: three streams of kStream bytes keep it busy. Their sums are
// joined by shifting the earlier ones over kStream zero bytes, which is linear over GF(2): four table look-ups.
constexpr size_t kStream = 1024;
constexpr uint32_t kPolynomial = 0x82F63B78;  // reflected

using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

// The state after `bytes` zero bytes that follow the state `crc`.
constexpr uint32_t AppendZeros(uint32_t crc, size_t bytes) {
  for (size_t i = 0; i < 8 * bytes; ++i) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
  return crc;
}

const ShiftTable& Shift() {
  static const ShiftTable* const table = [] {
    auto* const made = new ShiftTable;
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; ++bit) of_bit[bit] = AppendZeros(uint32_t{1} << bit, kStream);
    for (int byte = 0; byte < 4; ++byte) {
      for (uint32_t value = 0; value < 256; ++value) {
        uint32_t shifted = 0;
        for (int bit = 0; bit < 8; ++bit) {
          if (value >> bit & 1) shifted ^= of_bit[8 * byte + bit];
        }
        (*made)[static_cast<size_t>(byte)][value] = shifted;
      }
    }
    return made;
  }();
  return *table;
}

uint32_t ShiftedOverStream(const ShiftTable& table, uint32_t crc) {
  return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
}

uint64_t Word(const unsigned char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

}  // namespace

uint32_t Crc32c(const void* bytes, size_t size, uint32_t initial) {
  const auto* next = static_cast<const unsigned char*>(bytes);
  uint64_t crc = ~initial;
  if (size >= 3 * kStream) {
    const ShiftTable& table = Shift();
    for (; size >= 3 * kStream; size -= 3 * kStream, next += 3 * kStream) {
      uint64_t second = 0, third = 0;
      for (size_t i = 0; i < kStream; i += 8) {
        crc = _mm_crc32_u64(crc, Word(next + i));
        second = _mm_crc32_u64(second, Word(next + kStream + i));
        third = _mm_crc32_u64(third, Word(next + 2 * kStream + i));
      }
      crc = ShiftedOverStream(table, static_cast<uint32_t>(crc)) ^ second;
      crc = ShiftedOverStream(table, static_cast<uint32_t>(crc)) ^ third;
    }
  }
  for (; size >= 8; size -= 8, next += 8) crc = _mm_crc32_u64(crc, Word(next));
  for (; size > 0; --size, ++next) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *next);
  return ~static_cast<uint32_t>(crc);
}

}  // namespace millrace
