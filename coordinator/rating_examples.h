// Turns ratings into examples that a reward model learns from: lines of JSON as text/examples.h reads pairs.
//
//   {"prompt": P, "chosen": T, "rejected": T, "margin"?: number, "tie"?: true,
//    "raters": N, "source_chosen": T, "source_rejected": T, "notes": [T, …]}
// P is a string where the prompt is one message of the user, else a list of {"role", "content"}; raters is how many
// chose (without skips).
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/rating_store.h"
#include "proto/millrace/v1/ratings.pb.h"

namespace millrace::coordinator {

// What raters made of one pair.
enum class RatingOutcome { kUnrated, kSkipped, kFlagged, kTie, kA, kB };

// One flag is enough for kFlagged. Else the answer that more raters chose than the other and than a tie; an even split
// is a tie.
RatingOutcome OutcomeOf(const RatedPair& rated);

// The mean strength that those gave who chose the winner and said how much better it is; 0 if none did, and for ties.
// Slightly better, better and much better are margins of 1, 2 and 3, as the larger margins of Touvron et al., "Llama 2:
// Open Foundation and Fine-Tuned Chat Models", 2023, table 27.
double MarginOf(const RatedPair& rated, RatingOutcome outcome);

// The line, with its end, of a pair whose outcome is kTie, kA or kB.
std::string ExampleLine(const RatedPair& rated, RatingOutcome outcome);

// Gives the lines of a set to `sink`, in the order of its pairs, in pieces of many whole lines.
absl::StatusOr<v1::ExportCounts> ExportExamples(RatingStore* store, absl::string_view set_id,
                                                absl::FunctionRef<absl::Status(absl::string_view lines)> sink);

}  // namespace millrace::coordinator
