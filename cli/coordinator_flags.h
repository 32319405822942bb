// The flags by which a subcommand finds its coordinator, and says who asks.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "cli/tls_flags.h"
#include "common/grpc_channel.h"

namespace millrace::cli {

inline constexpr char kDefaultClusterDirectory[] = "runs/cluster";

struct CoordinatorFlags {
  std::string coordinator;                                          // --coordinator
  std::string directory = kDefaultClusterDirectory;                 // --dir
  TlsFlags tls;                                                     // --tls
  std::string token_file = FromEnvironment("MILLRACE_TOKEN_FILE");  // --token-file

  void Declare(Flags* flags) {
    flags->Text("coordinator", "HOST:PORT", "where the coordinator serves; default: that of the cluster in --dir",
                &coordinator);
    flags->Text("dir", "DIR", "of a cluster that `millrace up` started", &directory);
    tls.Declare(flags);
    flags->Text("token-file", "FILE",
                "file with the token to bring, or set MILLRACE_TOKEN_FILE; --tls DIR then needs ca.crt only",
                &token_file);
  }
  // Where the coordinator is. --tls and --token-file are for that of --coordinator: a cluster in a folder is on this
  // machine, in plain TCP. NOT_FOUND if no cluster runs in the directory.
  absl::StatusOr<Endpoint> Address() const;
};

}  // namespace millrace::cli
