// Passes absl::Status upwards, adding at each level what was being done.
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Returns `status` with "context: " before its message; OK and payloads stay as they are.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload(
      [&annotated](absl::string_view url, const absl::Cord& payload) { annotated.SetPayload(url, payload); });
  return annotated;
}

}  // namespace millrace

#define MILLRACE_RETURN_IF_ERROR(expression)                              \
  do {                                                                    \
    if (absl::Status millrace_status = (expression); !millrace_status.ok()) return millrace_status; \
  } while (false)

// MILLRACE_ASSIGN_OR_RETURN(const int x, ParseInt(s));
#define MILLRACE_ASSIGN_OR_RETURN(declaration, expression) \
  MILLRACE_ASSIGN_OR_RETURN_IMPL(MILLRACE_CONCAT(millrace_status_or_, __LINE__), declaration, expression)
#define MILLRACE_ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                           \
  if (!temporary.ok()) return std::move(temporary).status();               \
  declaration = *std::move(temporary)
#define MILLRACE_CONCAT(a, b) MILLRACE_CONCAT_INNER(a, b)
#define MILLRACE_CONCAT_INNER(a, b) a##b
