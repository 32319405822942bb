#include "cli/coordinator_flags.h"

#include "absl/strings/str_cat.h"
#include "cli/local_cluster.h"
#include "common/status.h"

namespace millrace::cli {

absl::StatusOr<std::string> CoordinatorFlags::Address() const {
  if (!coordinator.empty()) return coordinator;
  const absl::StatusOr<RunningCluster> cluster = FindRunningCluster(directory);
  if (absl::IsNotFound(cluster.status())) {
    return absl::NotFoundError(
        absl::StrCat(cluster.status().message(), ", --dir or --coordinator HOST:PORT name another"));
  }
  if (!cluster.ok()) return cluster.status();
  return cluster->coordinator;
}

}  // namespace millrace::cli
