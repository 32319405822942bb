// Converts between f32 and bfloat16, the upper half of an f32.
#pragma once

#include <cstdint>

namespace millrace::kernels {

// Rounds to nearest, ties to even; denormals become zeros of their sign, NaNs stay NaNs.
uint16_t RoundToBf16(float value);
float WidenBf16(uint16_t value);

// The same over arrays.
void RoundToBf16(const float* values, int64_t n, uint16_t* rounded);
void WidenBf16(const uint16_t* values, int64_t n, float* widened);
// Replaces each value by the nearest that bfloat16 has.
void KeepBf16(float* values, int64_t n);

}  // namespace millrace::kernels
