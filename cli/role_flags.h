// The flags that all roles share.
#pragma once

#include <string>

#include "cli/flags.h"

namespace millrace::cli {

struct ServerFlags {
  std::string listen = "127.0.0.1:0";
  std::string address_file;
  std::string metrics;

  void Declare(Flags* flags) {
    flags->Text("listen", "HOST:PORT", "where to serve; port 0: any", &listen);
    flags->Text("address-file", "PATH", "file to write HOST:PORT to once serving", &address_file);
    DeclareMetrics(flags);
  }
  void DeclareMetrics(Flags* flags) {
    flags->Text("metrics", "HOST:PORT", "where to serve Prometheus' metrics; default: nowhere", &metrics);
  }
};

}  // namespace millrace::cli
