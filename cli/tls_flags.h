// The flags that say what a process shows and trusts, and the variables of the environment that stand in for them.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "cli/flags.h"
#include "common/credentials.h"

namespace millrace::cli {

inline std::string FromEnvironment(const char* variable) {
  const char* const value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

struct TlsFlags {
  std::string directory = FromEnvironment("MILLRACE_TLS");  // --tls; empty: plain TCP

  void Declare(Flags* flags) {
    flags->Text("tls", "DIR",
                "folder with tls.crt, tls.key and ca.crt (docs/security.md), or set MILLRACE_TLS; without: plain TCP",
                &directory);
  }
  // Null for plain TCP.
  absl::StatusOr<std::shared_ptr<const Tls>> Open(const TlsOptions& options = {}) const {
    if (directory.empty()) return nullptr;
    return Tls::Open(directory, options);
  }
};

}  // namespace millrace::cli
