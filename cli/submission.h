// Reads a job file into what a coordinator takes.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::cli {

// `overrides`: FIELD=VALUE, as --set has them. Paths in the job are relative to the file's folder.
absl::StatusOr<v1::SubmitJobRequest> ReadSubmission(const std::string& job_file,
                                                    absl::Span<const std::string> overrides);

}  // namespace millrace::cli
