// Makes the work units of a step: which microbatches, with their tokens, so that workers need no data.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::coordinator {

// Plans one phase of a job. Units are a function of the data, the job, the phase and the step alone. Not thread-safe.
class Planner {
 public:
  // `data_directory` holds what text::PrepareData made for the job.
  static absl::StatusOr<std::unique_ptr<Planner>> Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const std::string& data_directory);
  ~Planner();

  // Units of the step after `version`.
  std::vector<v1::WorkUnit> Training(uint64_t epoch, uint64_t version);
  // Units that score the held-out text at `version`.
  std::vector<v1::WorkUnit> Evaluation(uint64_t epoch, uint64_t version) const;

  uint32_t training_units() const;
  // Predictions of a step, and of an evaluation, in all.
  uint64_t training_predictions() const;
  uint64_t evaluation_predictions() const;
  // Bytes of the text that an evaluation predicts.
  uint64_t evaluation_bytes() const;
  uint32_t vocab_size() const;
  // Of the tokens and the tokenizer: what training on them is a function of.
  const std::string& data_fingerprint() const;

 private:
  struct Impl;
  explicit Planner(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::coordinator
