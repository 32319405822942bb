// Says why there is no coordinator where one is looked for.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace millrace::client {

inline absl::Status NoCoordinator(const std::string& address, absl::Duration waited) {
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", address, " (waited ",
                                             absl::FormatDuration(waited),
                                             "); is it running, is this its address, and is --tls as it wants it?"));
}

// What was found there is not trusted, or does not trust us.
inline absl::Status NotTrusted(const std::string& address, const std::string& trouble) {
  return absl::UnauthenticatedError(absl::StrCat("no trusted connection with a coordinator at ", address, ": ", trouble,
                                                 "; --tls DIR names the certificates to use"));
}

}  // namespace millrace::client
