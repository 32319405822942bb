// The flags of the pages: the dashboard, and the one on which people compare answers.
#pragma once

#include <string>

#include "cli/flags.h"

namespace millrace::cli {

struct PageFlags {
  std::string http;        // --http
  std::string token_file;  // --http-token

  void Declare(Flags* flags) {
    flags->Text("http", "HOST:PORT", "where to serve the dashboard (docs/dashboard.md) and the rating page (docs/ratings.md), port 0: any; default: nowhere",
                &http);
    flags->Text("http-token", "FILE", "file with the secret that raters' requests must bring; default: none",
                &token_file);
  }
  // After the flags were parsed.
  absl::Status Check() const {
    if (http.empty() && !token_file.empty()) return UsageError("--http-token guards the page that --http serves");
    return absl::OkStatus();
  }
};

}  // namespace millrace::cli
