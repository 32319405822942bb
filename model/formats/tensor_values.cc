#include "model/formats/tensor_values.h"

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/bfloat16.h"

namespace millrace::model {

absl::Status ReadValues(const SafetensorsEntry& entry, absl::string_view bytes, float* to) {
  if (entry.dtype != "F32" && entry.dtype != "F16" && entry.dtype != "BF16") {
    return absl::InvalidArgumentError(absl::StrCat("has dtype ", entry.dtype, "; F32, F16 and BF16 are read"));
  }
  const auto count = static_cast<size_t>(bytes.size() / DtypeBytes(entry.dtype));
  if (entry.dtype == "F32") {
    std::memcpy(to, bytes.data(), bytes.size());
  } else {
    for (size_t i = 0; i < count; ++i) {
      uint16_t half;
      std::memcpy(&half, bytes.data() + 2 * i, sizeof(half));
      to[i] = entry.dtype == "BF16" ? kernels::WidenBf16(half) : _cvtsh_ss(half);
    }
  }
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(to[i])) {
      return absl::InvalidArgumentError(absl::StrCat("is damaged: element ", i, " is not finite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
