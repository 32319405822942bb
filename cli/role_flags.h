// The flags that all roles share.
#pragma once

#include <cstdio>
#include <string>

#include "cli/flags.h"
#include "cli/tls_flags.h"
#include "common/log.h"

namespace millrace::cli {

struct ServerFlags {
  TlsFlags tls;
  bool plaintext = false;
  std::string listen = "127.0.0.1:0";
  std::string address_file;
  std::string metrics;
  std::string health;
  bool log_json = false;

  void Declare(Flags* flags) {
    flags->Text("listen", "HOST:PORT", "where to serve; port 0: any", &listen);
    flags->Text("address-file", "PATH", "file to write HOST:PORT to once serving", &address_file);
    flags->Switch("plaintext", "lets others than this machine come without TLS: nobody is asked who they are",
                  &plaintext);
    DeclareMetrics(flags);
  }
  void DeclareMetrics(Flags* flags) {
    tls.Declare(flags);
    flags->Text("metrics", "HOST:PORT", "where to serve Prometheus' metrics; default: nowhere", &metrics);
    flags->Text("health", "HOST:PORT", "where to tell health by gRPC (live, ready), unencrypted; default: nowhere",
                &health);
    flags->Switch("log-json", "writes each line of the log as a JSON object", &log_json);
  }
  // After the flags were parsed.
  void SetLog() const { SetLogOutput(stderr, log_json); }
};

}  // namespace millrace::cli
