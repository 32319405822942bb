// Prepares what a job learns from: its own text and tokenizer, and each phase's text or examples.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/example_store.h"
#include "text/examples.h"
#include "text/token_store.h"

namespace millrace::coordinator {

// What an objective learns from; nothing: text.
std::optional<text::ExampleKind> ExamplesOf(const std::string& objective);

// Prepares the job's text in the folder `out`, with the tokenizer; of a job without text, the tokenizer alone: there is
// no report then. Does nothing where `out` holds what it would make. Paths are relative to `base_directory`. The errors
// of text::PrepareData.
absl::StatusOr<std::optional<text::DataReport>> PrepareJobData(const v1::JobSpec& job,
                                                               const std::string& base_directory,
                                                               const std::string& out,
                                                               const text::PrepareOptions& options = {});

// Prepares the data of a phase, which has some, in the folder `out`, for the tokenizer in the folder `job_data`.
// The errors of text::PrepareData and text::PrepareExamples.
using PhaseReport = std::variant<text::DataReport, text::ExampleReport>;
absl::StatusOr<PhaseReport> PreparePhaseData(const v1::JobSpec& job, const v1::PhaseSpec& phase,
                                             const std::string& base_directory, const std::string& job_data,
                                             const std::string& out);

// OK if the folder holds the whole prepared data of a phase, or, of an objective that is empty, of the job. NOT_FOUND
// if it was never prepared, DATA_LOSS if it is damaged.
absl::Status CheckPrepared(const v1::JobSpec& job, const std::string& objective, const std::string& folder);

}  // namespace millrace::coordinator
