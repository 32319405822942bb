// The flags by which a subcommand finds its coordinator.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/flags.h"

namespace millrace::cli {

inline constexpr char kDefaultClusterDirectory[] = "runs/cluster";

struct CoordinatorFlags {
  std::string coordinator;                          // --coordinator
  std::string directory = kDefaultClusterDirectory;  // --dir

  void Declare(Flags* flags) {
    flags->Text("coordinator", "HOST:PORT", "where the coordinator serves; default: that of the cluster in --dir",
                &coordinator);
    flags->Text("dir", "DIR", "of a cluster that `millrace up` started", &directory);
  }
  // NOT_FOUND if no cluster runs in the directory.
  absl::StatusOr<std::string> Address() const;
};

}  // namespace millrace::cli
