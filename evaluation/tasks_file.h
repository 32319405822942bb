// Reads tasks files: YAML mapped strictly onto the message TasksFile by the rules beside its fields. docs/evaluation.md
// is for users.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/evaluation.pb.h"

namespace millrace::evaluation {

// Reads a file, fills in defaults and checks what must hold between fields; templates and expressions are parsed.
// Errors name the file and the line, or the field by its path:
//   tasks.yaml:7: unknown field 'choises' in tasks.0; did you mean 'choices'?
//   tasks.yaml: tasks.0.max_tokens: only for exact_match and pass_fail, not choice
absl::StatusOr<v1::TasksFile> ReadTasksFile(const std::string& path);

// The same of text; `file_name` is for messages.
absl::StatusOr<v1::TasksFile> ParseTasks(absl::string_view yaml, absl::string_view file_name);

// The metrics that a type of task has, in the order in which they are told.
std::vector<std::string> MetricsOf(absl::string_view type);

}  // namespace millrace::evaluation
