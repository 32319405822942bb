// Makes the work units of a step: which microbatches, with their tokens, so that workers need no data.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/examples.h"

namespace millrace::coordinator {

// What an objective learns from; nothing: text.
std::optional<text::ExampleKind> ExamplesOf(const std::string& objective);

// Where a phase's data lies, prepared.
struct DataFolders {
  std::string job;    // the job's text
  std::string phase;  // the phase's own; empty: it learns from the job's
};

// Plans one phase of a job. Units are a function of the data, the job, the phase and the step alone. Not thread-safe.
class Planner {
 public:
  static absl::StatusOr<std::unique_ptr<Planner>> Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const DataFolders& folders);
  ~Planner();

  // Units of the step after `version`.
  std::vector<v1::WorkUnit> Training(uint64_t epoch, uint64_t version);
  // Units that score what is held out at `version`: first evaluation_units() of the phase's data; then, if that is not
  // the job's, those of the job's text.
  std::vector<v1::WorkUnit> Evaluation(uint64_t epoch, uint64_t version) const;

  uint32_t training_units() const;
  uint32_t evaluation_units() const;
  // Predictions of the step after `version`, and of an evaluation, in all; of the job's text, if that is scored too.
  uint64_t training_predictions(uint64_t version) const;
  uint64_t evaluation_predictions() const;
  uint64_t retained_predictions() const;
  // Steps in which the data is seen so many times.
  uint64_t StepsOf(double epochs) const;
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
