#include "cli/coordinator_flags.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/local_cluster.h"
#include "common/status.h"
#include "common/tokens.h"

namespace millrace::cli {

absl::StatusOr<Endpoint> CoordinatorFlags::Address() const {
  if (!coordinator.empty()) {
    if (tls.directory.empty()) {
      // Loopback needs none: what is set for another cluster does no harm.
      if (!token_file.empty() && !IsLoopback(coordinator)) {
        return UsageError("--token-file: a token is sent under TLS only; --tls DIR names the folder with ca.crt");
      }
      return Endpoint(coordinator);
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::shared_ptr<const Tls> opened,
                              tls.Open({.needs_identity = token_file.empty()}));
    if (token_file.empty()) return Endpoint(coordinator, opened->ForChannels(Role::kCoordinator));
    MILLRACE_ASSIGN_OR_RETURN(const std::string token, ReadTokenFile(token_file));
    return Endpoint(coordinator, opened->ForChannels(Role::kCoordinator, token));
  }
  const absl::StatusOr<RunningCluster> cluster = FindRunningCluster(directory);
  if (absl::IsNotFound(cluster.status())) {
    return absl::NotFoundError(
        absl::StrCat(cluster.status().message(), ", --dir or --coordinator HOST:PORT name another"));
  }
  if (!cluster.ok()) return cluster.status();
  return Endpoint(cluster->coordinator);
}

}  // namespace millrace::cli
