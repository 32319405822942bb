// Says that nobody answers where a coordinator is looked for.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace millrace::client {

inline absl::Status NoCoordinator(const std::string& address, absl::Duration waited) {
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", address, " (waited ",
                                             absl::FormatDuration(waited),
                                             "); is it running, and is this its address?"));
}

}  // namespace millrace::client
