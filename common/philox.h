// Makes random numbers from a key and a counter alone, so that a draw depends on what it is for and never on who
// makes it or in which order.
//
// Philox-4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123).
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// Ten rounds of Philox over one 128-bit counter with a 64-bit key.
class Philox {
 public:
  explicit constexpr Philox(uint64_t key) : key_(key) {}

  // Four independent uniform 32-bit words for the counter (high, low).
  constexpr std::array<uint32_t, 4> operator()(uint64_t high, uint64_t low) const {
    std::array<uint32_t, 4> x = {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                                 static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
    uint32_t k0 = static_cast<uint32_t>(key_);
    uint32_t k1 = static_cast<uint32_t>(key_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * x[0];
      const uint64_t p1 = uint64_t{0xCD9E8D57} * x[2];
      x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return x;
  }

  // A key for another purpose, derived from this one.
  constexpr Philox Derive(uint64_t purpose) const {
    const std::array<uint32_t, 4> x = (*this)(~uint64_t{0}, purpose);
    return Philox(x[0] | uint64_t{x[1]} << 32);
  }

 private:
  uint64_t key_;
};

// Uniform in [0, 1) with 24 bits, exactly representable.
constexpr float UniformFloat(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace millrace
