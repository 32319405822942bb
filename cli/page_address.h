// Finds the coordinator's pages: the dashboard, and "rate", on which people compare answers.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/grpc_channel.h"

namespace millrace::cli {

// "http://HOST:PORT/"; empty if the coordinator serves none.
absl::StatusOr<std::string> PageAddress(const Endpoint& coordinator);

}  // namespace millrace::cli
