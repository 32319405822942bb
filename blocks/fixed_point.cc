#include "blocks/fixed_point.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::blocks {
namespace {

// Rounding is the processor's default, to nearest even, in every mode of flushing denormals.

uint64_t Encode16(absl::Span<const float> values, float scale, char* out) {
  constexpr float kLimit = 32767.0f;
  uint64_t clipped = 0;
  size_t i = 0;
  const __m256 scales = _mm256_set1_ps(scale), highest = _mm256_set1_ps(kLimit), lowest = _mm256_set1_ps(-kLimit);
  for (; i + 16 <= values.size(); i += 16) {
    const __m256 a = _mm256_mul_ps(_mm256_loadu_ps(values.data() + i), scales);
    const __m256 b = _mm256_mul_ps(_mm256_loadu_ps(values.data() + i + 8), scales);
    const __m256 clipped_a = _mm256_max_ps(_mm256_min_ps(a, highest), lowest);
    const __m256 clipped_b = _mm256_max_ps(_mm256_min_ps(b, highest), lowest);
    const int changed_a = _mm256_movemask_ps(_mm256_cmp_ps(a, clipped_a, _CMP_NEQ_UQ));
    const int changed_b = _mm256_movemask_ps(_mm256_cmp_ps(b, clipped_b, _CMP_NEQ_UQ));
    clipped += static_cast<uint64_t>(__builtin_popcount(static_cast<unsigned>(changed_a)) +
                                     __builtin_popcount(static_cast<unsigned>(changed_b)));
    // Packing works within halves of the register: put the quarters in order.
    const __m256i packed = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(clipped_a), _mm256_cvtps_epi32(clipped_b)), 0b11011000);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), packed);
  }
  for (; i < values.size(); ++i) {
    const float scaled = values[i] * scale;
    const float within = std::max(std::min(scaled, kLimit), -kLimit);
    clipped += within != scaled;
    const auto integer = static_cast<int16_t>(_mm_cvtss_si32(_mm_set_ss(within)));
    std::memcpy(out + 2 * i, &integer, sizeof(integer));
  }
  return clipped;
}

template <typename Integer>
uint64_t EncodeWide(absl::Span<const float> values, double scale, int64_t limit_integer, char* out) {
  const auto limit = static_cast<double>(limit_integer);
  uint64_t clipped = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double scaled = static_cast<double>(values[i]) * scale;
    const double within = std::max(std::min(scaled, limit), -limit);
    clipped += within != scaled;
    const auto integer = static_cast<Integer>(_mm_cvtsd_si64(_mm_set_sd(within)));
    std::memcpy(out + sizeof(Integer) * i, &integer, sizeof(integer));
  }
  return clipped;
}

// Whether every value is finite: the exponent has not all bits set.
bool AllFinite(absl::Span<const float> values) {
  uint32_t found = 0;
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    found |= static_cast<uint32_t>((bits & 0x7F800000) == 0x7F800000);
  }
  return found == 0;
}

template <typename Integer>
Integer IntegerAt(absl::string_view coded, size_t i) {
  Integer integer;
  std::memcpy(&integer, coded.data() + sizeof(Integer) * i, sizeof(integer));
  return integer;
}

template <typename Integer, typename Sum>
bool AddIntegers(absl::string_view coded, int64_t limit, bool first, absl::Span<Sum> sums) {
  const auto highest = static_cast<Integer>(limit), lowest = static_cast<Integer>(-limit);
  Integer beyond = 0;  // as wide as the integers, so that whole registers of them are compared
  for (size_t i = 0; i < sums.size(); ++i) {
    const Integer integer = IntegerAt<Integer>(coded, i);
    beyond |= static_cast<Integer>(integer > highest || integer < lowest);
  }
  if (beyond != 0) return false;
  if (first) {
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = IntegerAt<Integer>(coded, i);
  } else {
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += IntegerAt<Integer>(coded, i);
  }
  return true;
}

// Of kDecodePiece sums.
constexpr size_t kDecodePiece = 256;

int64_t LargestMagnitude(const int64_t* sums) {
  __m256i highest = _mm256_setzero_si256(), lowest = _mm256_setzero_si256();
  for (size_t i = 0; i < kDecodePiece; i += 4) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i));
    highest = _mm256_blendv_epi8(highest, four, _mm256_cmpgt_epi64(four, highest));
    lowest = _mm256_blendv_epi8(lowest, four, _mm256_cmpgt_epi64(lowest, four));
  }
  alignas(32) int64_t ends[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(ends), highest);
  _mm256_store_si256(reinterpret_cast<__m256i*>(ends + 4), _mm256_sub_epi64(_mm256_setzero_si256(), lowest));
  return *std::max_element(ends, ends + 8);
}

// Added to the bits of 1.5 * 2^52 a number below this becomes that double's last places: the processor converts no
// whole registers of 64-bit integers.
constexpr int64_t kConvertible = int64_t{1} << 51;

void DecodePiece(const int64_t* sums, const Coding& coding, float* values) {
  const __m256d base = _mm256_set1_pd(6755399441055744.0);
  const __m256d unit = _mm256_set1_pd(std::ldexp(1.0, coding.exponent));
  for (size_t i = 0; i < kDecodePiece; i += 4) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i));
    const __m256d moved = _mm256_castsi256_pd(_mm256_add_epi64(four, _mm256_castpd_si256(base)));
    _mm_storeu_ps(values + i, _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(moved, base), unit)));
  }
}

int64_t LargestMagnitude(const int32_t* sums) {
  __m256i largest = _mm256_setzero_si256();  // as numbers without a sign, so that the lowest has a magnitude too
  for (size_t i = 0; i < kDecodePiece; i += 8) {
    const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i));
    largest = _mm256_max_epu32(largest, _mm256_abs_epi32(eight));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  return *std::max_element(lanes, lanes + 8);
}

void DecodePiece(const int32_t* sums, const Coding& coding, float* values) {
  const __m256d unit = _mm256_set1_pd(std::ldexp(1.0, coding.exponent));
  for (size_t i = 0; i < kDecodePiece; i += 4) {
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + i));
    _mm_storeu_ps(values + i, _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtepi32_pd(four), unit)));
  }
}

absl::Status CheckSize(absl::string_view coded, const Coding& coding, size_t size) {
  if (coded.size() == size * coding.bits / 8) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(coded.size(), " bytes where ", size, " integers of ", coding.bits,
                                                 " bits have ", size * coding.bits / 8));
}

absl::Status Beyond() { return absl::InvalidArgumentError("a value lies beyond the coding's limit"); }

}  // namespace

absl::StatusOr<Coding> CodingFromProto(const v1::Coding& coding) {
  if (coding.bits() == 0) return Coding();
  if (coding.bits() != 16 && coding.bits() != 32 && coding.bits() != 64) {
    return absl::InvalidArgumentError(absl::StrCat("a coding of ", coding.bits(), " bits; 16, 32 and 64 are known"));
  }
  if (coding.exponent() < kMinExponent || coding.exponent() > kMaxExponent) {
    return absl::InvalidArgumentError(absl::StrCat("a coding's exponent of ", coding.exponent(), " is not within [",
                                                   kMinExponent, ", ", kMaxExponent, "]"));
  }
  return Coding{coding.bits(), coding.exponent()};
}

v1::Coding CodingToProto(const Coding& coding) {
  v1::Coding proto;
  proto.set_bits(coding.bits);
  proto.set_exponent(coding.exponent);
  return proto;
}

absl::StatusOr<uint64_t> Encode(absl::Span<const float> values, const Coding& coding, std::string* out) {
  if (!AllFinite(values)) {
    const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    return absl::InvalidArgumentError(absl::StrCat("element ", bad - values.begin(), " is not finite (", *bad, ")"));
  }
  out->resize(values.size() * coding.bits / 8);
  const double scale = std::ldexp(1.0, -coding.exponent);
  if (coding.bits == 16) return Encode16(values, static_cast<float>(scale), out->data());
  return coding.bits == 32 ? EncodeWide<int32_t>(values, scale, coding.limit(), out->data())
                           : EncodeWide<int64_t>(values, scale, coding.limit(), out->data());
}

absl::Status AddTo(absl::string_view coded, const Coding& coding, absl::Span<int64_t> sums, bool first) {
  MILLRACE_RETURN_IF_ERROR(CheckSize(coded, coding, sums.size()));
  const bool within = coding.bits == 16   ? AddIntegers<int16_t>(coded, coding.limit(), first, sums)
                      : coding.bits == 32 ? AddIntegers<int32_t>(coded, coding.limit(), first, sums)
                                          : AddIntegers<int64_t>(coded, coding.limit(), first, sums);
  return within ? absl::OkStatus() : Beyond();
}

absl::Status AddTo16(absl::string_view coded, const Coding& coding, absl::Span<int32_t> sums, bool first) {
  MILLRACE_RETURN_IF_ERROR(CheckSize(coded, coding, sums.size()));
  return AddIntegers<int16_t>(coded, coding.limit(), first, sums) ? absl::OkStatus() : Beyond();
}

template <typename Sum>
uint64_t DecodeSums(absl::Span<const Sum> sums, const Coding& coding, float* values) {
  const Sum* const from = sums.data();
  size_t i = 0;
  int64_t largest = 0;
  // Pieces are read twice, but once from memory.
  for (; i + kDecodePiece <= sums.size(); i += kDecodePiece) {
    const int64_t largest_here = LargestMagnitude(from + i);
    largest = std::max(largest, largest_here);
    if (largest_here < kConvertible) {
      DecodePiece(from + i, coding, values + i);
    } else {
      for (size_t j = i; j < i + kDecodePiece; ++j) values[j] = Decode(from[j], coding);
    }
  }
  for (; i < sums.size(); ++i) {
    largest = std::max(largest, std::abs(int64_t{from[i]}));
    values[i] = Decode(from[i], coding);
  }
  return static_cast<uint64_t>(largest);
}
template uint64_t DecodeSums(absl::Span<const int64_t> sums, const Coding& coding, float* values);
template uint64_t DecodeSums(absl::Span<const int32_t> sums, const Coding& coding, float* values);

Coding NextCoding(const Coding& previous, uint64_t largest, uint32_t bits) {
  if (largest == 0) return previous;
  // The smallest exponent at which 4 * largest * 2^previous.exponent is within 2^(bits - 1), by whole numbers alone:
  // 2^magnitude is the first power of two that is not below `largest`.
  const int magnitude = largest == 1 ? 0 : 64 - __builtin_clzll(largest - 1);
  int exponent = magnitude + 2 + previous.exponent - static_cast<int>(bits - 1);
  if (previous.bits == bits) exponent = std::max(exponent, previous.exponent - 1);
  return {bits, std::clamp(exponent, kMinExponent, kMaxExponent)};
}

}  // namespace millrace::blocks
