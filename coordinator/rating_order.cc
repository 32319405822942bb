#include "coordinator/rating_order.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"

namespace millrace::coordinator {
namespace {

// The first 64 bits of a SHA-256 over both names; a length keeps them apart.
uint64_t KeyOf(absl::string_view set_id, absl::string_view rater) {
  const std::string digest = Sha256Hex(absl::StrCat("rating order\n", set_id.size(), "\n", set_id, rater));
  uint64_t key = 0;
  for (int i = 0; i < 16; ++i) {
    const char digit = digest[static_cast<size_t>(i)];
    key = key << 4 | static_cast<uint64_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
  }
  return key;
}

}  // namespace

RatingOrder::RatingOrder(absl::string_view set_id, absl::string_view rater) : philox_(KeyOf(set_id, rater)) {}

}  // namespace millrace::coordinator
