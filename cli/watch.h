// Follows a job on the terminal.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/coordinator_client.h"

namespace millrace::cli {

// Shows everything that has happened to the job and goes on until it has ended. `json`: prints each event as one line
// of JSON. An error if the job has not succeeded.
absl::Status WatchToEnd(client::CoordinatorClient* coordinator, const std::string& job_id, bool json);

}  // namespace millrace::cli
