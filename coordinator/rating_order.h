// Says which pair a rater sees next and which of its answers stands first.
//
// Both are random, so that neither the order of a file nor the place on the screen says anything, yet functions of
// (set, rater, pair): whoever loads the page again sees the same.
#pragma once

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/philox.h"

namespace millrace::coordinator {

class RatingOrder {
 public:
  RatingOrder(absl::string_view set_id, absl::string_view rater);

  // Of pairs that are equally wanted the one with the least rank comes first.
  uint64_t Rank(uint64_t pair) const {
    const std::array<uint32_t, 4> words = philox_(0, pair);
    return words[0] | uint64_t{words[1]} << 32;
  }
  // Whether answer b is the one on the left.
  bool Swapped(uint64_t pair) const { return (philox_(1, pair)[0] & 1) != 0; }

 private:
  const Philox philox_;
};

}  // namespace millrace::coordinator
