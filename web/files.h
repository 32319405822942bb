// Holds the files of the rating page, so that one binary is enough to serve it.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::web {

struct File {
  absl::string_view path;          // "/rate.js"; the page itself is "/"
  absl::string_view content_type;
  absl::string_view bytes;
};

absl::Span<const File> Files();

}  // namespace millrace::web
