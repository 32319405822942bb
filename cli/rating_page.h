// Finds the page on which people compare answers.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace millrace::cli {

// "http://HOST:PORT/"; empty if the coordinator at this address serves none.
absl::StatusOr<std::string> RatingPage(const std::string& coordinator);

}  // namespace millrace::cli
