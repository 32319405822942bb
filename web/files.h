// Holds the files of the pages, so that one binary is enough to serve them.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::web {

struct File {
  absl::string_view path;          // "/rate.js"; pages are "/" and "/rate"
  absl::string_view content_type;
  absl::string_view bytes;
};

absl::Span<const File> Files();

}  // namespace millrace::web
