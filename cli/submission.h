// Reads a job file into what a coordinator takes.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::cli {

// `overrides`: FIELD=VALUE, as --set has them. Paths in the job are relative to the file's folder. The request's spec
// is the whole job, which its YAML and overrides give to the coordinator too.
absl::StatusOr<v1::SubmitJobRequest> ReadSubmission(const std::string& job_file,
                                                    absl::Span<const std::string> overrides);

// "NAME=VALUE" as --label has them, into `labels`. A usage error names the flag.
absl::Status AddLabels(absl::Span<const std::string> labels, const std::string& flag,
                       google::protobuf::Map<std::string, std::string>* into);

}  // namespace millrace::cli
