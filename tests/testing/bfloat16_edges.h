// Numbers at which rounding to bfloat16 may go wrong.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace millrace::testing {

// Every exponent and sign, at and beside ties, and the edges of denormals, infinities and NaNs.
inline std::vector<float> Bfloat16Edges() {
  std::vector<float> edges;
  for (uint32_t upper = 0; upper < 0x10000; upper += 37) {
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      edges.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  for (uint32_t exponent = 0; exponent < 512; ++exponent) {
    for (const uint32_t mantissa : {0x0u, 0x1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, 0x10000u, 0x17FFFu, 0x18000u,
                                    0x18001u, 0x3FFFFFu, 0x400000u, 0x7F7FFFu, 0x7F8000u, 0x7FFFFFu}) {
      edges.push_back(std::bit_cast<float>(exponent << 23 | mantissa));
    }
  }
  return edges;
}

}  // namespace millrace::testing
