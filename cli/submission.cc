#include "cli/submission.h"

#include <filesystem>

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
  request.set_base_directory(std::filesystem::absolute(job_file).lexically_normal().parent_path().string());
  return request;
}

}  // namespace millrace::cli
