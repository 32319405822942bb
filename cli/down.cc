// millrace down: stops the cluster that `millrace up` started.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/coordinator_flags.h"
#include "cli/flags.h"
#include "cli/local_cluster.h"
#include "common/status.h"

// glibc 2.36's header leaves out the extern "C" that its functions need.
extern "C" {
#include <sys/pidfd.h>
}

namespace millrace::cli {

absl::Status RunDown(Arguments arguments) {
  std::string directory = kDefaultClusterDirectory;
  Flags flags("down", "Stops the local cluster in a folder: a running job is checkpointed and goes on after `up`.",
              "--dir runs/cluster");
  flags.Text("dir", "DIR", "folder of the cluster's files", &directory);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const RunningCluster cluster, FindRunningCluster(directory));
  const int supervisor = pidfd_open(cluster.supervisor, 0);
  if (supervisor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot reach the cluster's process ", cluster.supervisor));
  }
  // Only now is it sure that the number means that process: it held the lock after being written down.
  const absl::StatusOr<RunningCluster> still = FindRunningCluster(directory);
  absl::Status status;
  if (still.ok() && still->supervisor == cluster.supervisor) {
    if (pidfd_send_signal(supervisor, SIGTERM, nullptr, 0) != 0) {
      status = absl::ErrnoToStatus(errno, absl::StrCat("cannot stop the cluster's process ", cluster.supervisor));
    } else {
      pollfd ended = {.fd = supervisor, .events = POLLIN, .revents = 0};
      while (poll(&ended, 1, -1) < 0 && errno == EINTR) {
      }
      std::printf("The cluster in %s is down.\n", directory.c_str());
    }
  }
  close(supervisor);
  return status;
}

}  // namespace millrace::cli
