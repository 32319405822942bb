#include "cli/submission.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cli/flags.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/status.h"
#include "common/yaml_message.h"

namespace millrace::cli {

absl::StatusOr<v1::SubmitJobRequest> ReadSubmission(const std::string& job_file,
                                                    absl::Span<const std::string> overrides) {
  v1::SubmitJobRequest request;
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_job_yaml(), ReadFile(job_file, kMaxYamlBytes));
  MILLRACE_ASSIGN_OR_RETURN(*request.mutable_spec(), ParseJob(request.job_yaml(), job_file, overrides));
  for (const std::string& override_text : overrides) request.add_overrides(override_text);
  request.set_base_directory(std::filesystem::absolute(job_file).lexically_normal().parent_path().string());
  return request;
}

absl::Status AddLabels(absl::Span<const std::string> labels, const std::string& flag,
                       google::protobuf::Map<std::string, std::string>* into) {
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return UsageError(absl::StrCat("--", flag, " ", label, ": NAME=VALUE is wanted, as in team=search"));
    }
    (*into)[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
