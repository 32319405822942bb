// Reads the JSON of rating pairs and of what raters send.
//
// A pair, one line:
//   {"prompt": C, "a": string, "b": string, "source_a"?: string, "source_b"?: string}
//   where C and its other names are those of prompts in text/examples.h.
// A rating and the taking back of one:
//   {"set": ID, "rater": NAME, "pair": N, "choice": "left" | "right" | "tie" | "skip",
//    "strength"?: 1…3, "flagged"?: bool, "note"?: string}
//   {"set": ID, "rater": NAME, "pair": N}
// Left and right are what coordinator/rating_order.h showed this rater there.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/ratings.pb.h"
#include "text/chat_template.h"

namespace millrace::coordinator {

// INVALID_ARGUMENT saying what is wrong with the line, also by CheckRatingPair. Unknown fields are left out, as in
// other lines of examples.
absl::StatusOr<v1::RatingPair> ParseRatingPair(absl::string_view line);

// What is asked, as the prompt of a pair.
void AddPrompt(absl::Span<const text::Message> messages, v1::RatingPair* pair);

// What a rater says about a pair, with sides turned into answers; unix_ms is not set.
struct RateRequest {
  std::string set_id;
  uint64_t pair = 0;
  v1::Rating rating;
};
struct UndoRequest {
  std::string set_id;
  uint64_t pair = 0;
  std::string rater;
};

// INVALID_ARGUMENT naming the field and what would be right; an unknown field is an error.
absl::StatusOr<RateRequest> ParseRateRequest(absl::string_view body);
absl::StatusOr<UndoRequest> ParseUndoRequest(absl::string_view body);

}  // namespace millrace::coordinator
