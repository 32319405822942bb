// Turns f32 values into what model files store.
//
//   f32    4 bytes, as they are
//   f16    IEEE 754 binary16, to nearest even; 2 bytes
//   bf16   the upper half of an f32, to nearest even, denormals to zero; 2 bytes
//   q8_0   blocks of 32 values x, 34 bytes each: f16(d) and 32 signed bytes round(x / d), halves away from zero, with
//          d = max |x| / 127 (llama.cpp's ggml); GGUF's alone
//
// All little-endian.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::model {

enum class Dtype { kF32, kF16, kBf16, kQ8_0 };

inline constexpr int64_t kQ8_0Block = 32;  // values

// Of "f32", "f16", "bf16" or "q8_0"; nothing for another name.
std::optional<Dtype> DtypeNamed(absl::string_view name);

// Bytes that so many values take. Requires whole blocks of q8_0.
uint64_t StoredBytes(Dtype dtype, int64_t values);

// Appends the values to `bytes`. Requires whole blocks of q8_0. INVALID_ARGUMENT, naming the element, for one that f16
// has no number for: `bytes` then ends anywhere.
absl::Status AppendStored(Dtype dtype, absl::Span<const float> values, std::string* bytes);

}  // namespace millrace::model
