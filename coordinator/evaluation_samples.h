// What a phase's model is asked to write at each evaluation (evaluate.samples), and what it wrote.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/job.pb.h"
#include "proto/millrace/v1/jobs.pb.h"
#include "text/tokenizer.h"

namespace millrace::coordinator {

// Constant after Open.
class EvaluationSamples {
 public:
  // Encodes the prompts: as beginnings of documents, or where the phase learns from conversations as what a user says,
  // by its chat template, whose path is relative to `base_directory`. The tokenizer is that in the folder `job_data`.
  // Requires a phase with evaluate.samples. INVALID_ARGUMENT names the prompt that cannot be encoded or leaves no room
  // in the context.
  static absl::StatusOr<std::unique_ptr<EvaluationSamples>> Open(const v1::JobSpec& job, const v1::PhaseSpec& phase,
                                                                 const std::string& job_data,
                                                                 const std::string& base_directory);

  // The unit that has them continued at `version`: one for all, which are extended together.
  v1::WorkUnit Unit(uint64_t epoch, uint64_t version) const;
  // Tokens that end a text (PhaseContext.sample_ends).
  const std::vector<uint32_t>& ends() const { return ends_; }
  // What a worker wrote, in well-formed UTF-8. INTERNAL if that is not what was asked.
  absl::StatusOr<v1::SamplesEvent> Read(uint64_t version, const v1::WorkResult& result) const;

 private:
  EvaluationSamples() = default;

  std::string phase_;
  v1::SamplesSpec spec_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::vector<std::vector<uint32_t>> prompts_;
  std::vector<uint32_t> ends_;
};

}  // namespace millrace::coordinator
