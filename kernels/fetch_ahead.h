// How far ahead memory is fetched into the outer cache where parts of many rows are read at a time, which are more
// streams than a processor notices.
#pragma once

#include <cstdint>

namespace millrace::kernels {

// Rows (of an operand's lines, where these lie side by side in memory: lines).
constexpr int64_t kRowsAhead = 16;
constexpr int64_t kCacheLine = 16;  // floats

}  // namespace millrace::kernels
