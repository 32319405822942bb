// Cleans one document.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::text {

// Applies, in this order and each if asked for: line ends and control characters (CR LF and CR become newline; U+FEFF
// and category Cc other than tab and newline go), Unicode normalisation, lower-casing (root locale), punctuation
// (typographic quotation marks to ' and ", dashes and minus to -, ellipsis to ..., no-break spaces to a space).
// Requires well-formed UTF-8 and gives it. Nothing is trimmed.
absl::StatusOr<std::string> Clean(const v1::CleanSpec& spec, absl::string_view text);

}  // namespace millrace::text
