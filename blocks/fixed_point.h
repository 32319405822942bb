// Codes gradients as integers, so that sums over work units are exact and hence do not depend on their order.
//
// A block's coding at a version says how wide the integers are and what they count: value = integer * 2^exponent. The
// shards publish it with the weights. Before a phase's first step nothing is known of a block's gradient: 64 bits with
// a fixed exponent. Later the range follows the last sum: at least 4 times its largest value, and falling by at most a
// factor of two a step. A sum of nothing but zeros (rows of an embedding that no token of the batch looked up) says
// nothing of the next one: the coding stays.
//
// Bits on the wire: little-endian two's complement integers of `bits` bits.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/parameter_server.pb.h"

namespace millrace::blocks {

// Below 2^-120 a coded value of the smallest normal float would not round to zero as denormals, which compute threads
// flush, do.
inline constexpr int kMinExponent = -120;
inline constexpr int kMaxExponent = 60;
inline constexpr int kStartExponent = -36;
// Contributions are clipped to this many units of the coding at the start, so that 2^19 of them cannot overflow a sum.
inline constexpr int64_t kStartLimit = int64_t{1} << 43;

struct Coding {
  uint32_t bits = 64;
  int32_t exponent = kStartExponent;

  // The largest integer that is sent, and the smallest with its sign.
  int64_t limit() const { return bits == 64 ? kStartLimit : (int64_t{1} << (bits - 1)) - 1; }
  bool operator==(const Coding&) const = default;
};

// A coding that is absent, or of 0 bits, is that of the start. INVALID_ARGUMENT for other bits than 16, 32 and 64 and
// exponents out of bounds.
absl::StatusOr<Coding> CodingFromProto(const v1::Coding& coding);
v1::Coding CodingToProto(const Coding& coding);

// Rounds each value to the nearest integer of the coding, ties to even, clips it to the limit, and writes the integers
// to `out`, replacing it. Returns how many were clipped. INVALID_ARGUMENT: a value is not finite, naming its index.
absl::StatusOr<uint64_t> Encode(absl::Span<const float> values, const Coding& coding, std::string* out);

// Adds coded values to sums, or, if they are the `first`, puts them in the place of whatever is there.
// INVALID_ARGUMENT, and nothing changes, unless there are as many as sums, within the limit.
absl::Status AddTo(absl::string_view coded, const Coding& coding, absl::Span<int64_t> sums, bool first = false);
// The same of a coding of 16 bits; so many contributions at most fit such sums.
inline constexpr uint32_t kMost16 = 1 << 16;
absl::Status AddTo16(absl::string_view coded, const Coding& coding, absl::Span<int32_t> sums, bool first = false);

// The value of a sum, rounded once to f64 and once to f32.
inline float Decode(int64_t sum, const Coding& coding) {
  // 2^exponent is exact in f64.
  const uint64_t bits = static_cast<uint64_t>(1023 + coding.exponent) << 52;
  double unit;
  __builtin_memcpy(&unit, &bits, sizeof(unit));
  return static_cast<float>(static_cast<double>(sum) * unit);
}

// The same over arrays, of int64_t or int32_t. Returns the largest magnitude, in units of the coding. Requires as many
// values as sums.
template <typename Sum>
uint64_t DecodeSums(absl::Span<const Sum> sums, const Coding& coding, float* values);

// The coding for the next step, after a sum at `previous` whose largest magnitude was `largest` (in units of
// `previous`): `bits` wide (16 or 32), or `previous` if `largest` is 0.
Coding NextCoding(const Coding& previous, uint64_t largest, uint32_t bits);

}  // namespace millrace::blocks
