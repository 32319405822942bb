// Finds the page on which people compare answers.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/grpc_channel.h"

namespace millrace::cli {

// "http://HOST:PORT/rate"; empty if the coordinator serves none.
absl::StatusOr<std::string> RatingPage(const Endpoint& coordinator);

}  // namespace millrace::cli
