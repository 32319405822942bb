#include "kernels/bfloat16.h"

#include "kernels/functions.h"

namespace millrace::kernels {
namespace {

using internal::BitsOf;
using internal::FloatOf;

// The upper half is the rounded value, the lower one is zero.
inline uint32_t RoundedBits(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  const uint32_t denormal = (bits & 0x7F800000) == 0 ? 0xFFFFFFFF : 0;
  const uint32_t nan = (bits & 0x7FFFFFFF) > 0x7F800000 ? 0xFFFFFFFF : 0;
  const uint32_t result = (rounded & ~denormal & ~nan) | (bits & 0x80000000 & denormal) | ((bits | 0x400000) & nan);
  return result & 0xFFFF0000;
}

}  // namespace

uint16_t RoundToBf16(float value) { return static_cast<uint16_t>(RoundedBits(value) >> 16); }
float WidenBf16(uint16_t value) { return FloatOf(uint32_t{value} << 16); }

void RoundToBf16(const float* values, int64_t n, uint16_t* rounded) {
  for (int64_t i = 0; i < n; ++i) rounded[i] = static_cast<uint16_t>(RoundedBits(values[i]) >> 16);
}

void WidenBf16(const uint16_t* values, int64_t n, float* widened) {
  for (int64_t i = 0; i < n; ++i) widened[i] = FloatOf(uint32_t{values[i]} << 16);
}

void KeepBf16(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = FloatOf(RoundedBits(values[i]));
}

}  // namespace millrace::kernels
