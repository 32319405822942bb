// Pairs to rate, and what the rating page sends: any bytes give what keeps its bounds, or an error.
#include <cstdint>
#include <cstdlib>

#include "coordinator/rating_json.h"
#include "coordinator/rating_store.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace::coordinator;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto pair = ParseRatingPair(text); pair.ok() && !CheckRatingPair(*pair).ok()) abort();
  if (const auto rate = ParseRateRequest(text); rate.ok()) {
    if (rate->rating.choice() == millrace::v1::Rating::CHOICE_UNSPECIFIED) abort();
    if (rate->rating.strength() > kMaxRatingStrength) abort();
    if (millrace::text::FirstInvalidUtf8(rate->rating.note()).has_value()) abort();
  }
  if (const auto undo = ParseUndoRequest(text); undo.ok()) {
    // All of its fields are those of a rating, too, which lacks but its choice.
    if (ParseRateRequest(text).ok()) abort();
  }
  return 0;
}
