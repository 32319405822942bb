#include "model/formats/dtype.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/bfloat16.h"

namespace millrace::model {
namespace {

constexpr float kLargestF16 = 65504;

void AppendHalf(uint16_t half, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&half), sizeof(half));
}

uint16_t RoundToF16(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

absl::Status OutOfRange(size_t element, float value) {
  return absl::InvalidArgumentError(
      absl::StrCat("element ", element, " is ", value, ", beyond f16's ", kLargestF16, "; bf16 and f32 hold it"));
}

}  // namespace

std::optional<Dtype> DtypeNamed(absl::string_view name) {
  if (name == "f32") return Dtype::kF32;
  if (name == "f16") return Dtype::kF16;
  if (name == "bf16") return Dtype::kBf16;
  if (name == "q8_0") return Dtype::kQ8_0;
  return std::nullopt;
}

uint64_t StoredBytes(Dtype dtype, int64_t values) {
  const auto count = static_cast<uint64_t>(values);
  switch (dtype) {
    case Dtype::kF32:
      return 4 * count;
    case Dtype::kF16:
    case Dtype::kBf16:
      return 2 * count;
    case Dtype::kQ8_0:
      return count / kQ8_0Block * (2 + kQ8_0Block);
  }
  return 0;
}

absl::Status AppendStored(Dtype dtype, absl::Span<const float> values, std::string* bytes) {
  switch (dtype) {
    case Dtype::kF32:
      bytes->append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      break;
    case Dtype::kF16:
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t half = RoundToF16(values[i]);
        if ((half & 0x7C00) == 0x7C00) return OutOfRange(i, values[i]);
        AppendHalf(half, bytes);
      }
      break;
    case Dtype::kBf16:
      for (const float value : values) AppendHalf(kernels::RoundToBf16(value), bytes);
      break;
    case Dtype::kQ8_0:
      for (size_t begin = 0; begin < values.size(); begin += kQ8_0Block) {
        const absl::Span<const float> block = values.subspan(begin, kQ8_0Block);
        float largest = 0;
        for (const float value : block) largest = std::max(largest, std::fabs(value));
        const float scale = largest / 127.0f;
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        if (scale > kLargestF16) return OutOfRange(begin, scale);
        AppendHalf(RoundToF16(scale), bytes);
        for (const float value : block) {
          bytes->push_back(static_cast<char>(static_cast<int8_t>(std::round(value * inverse))));
        }
      }
      break;
  }
  return absl::OkStatus();
}

}  // namespace millrace::model
