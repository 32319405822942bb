// Makes the work units of a step: which microbatches, with their tokens, so that workers need no data.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/job_data.h"
#include "proto/millrace/v1/coordinator.pb.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/chat_template.h"

namespace millrace::coordinator {

// Where a phase's data lies, prepared.
struct DataFolders {
  std::string job;    // the job's text, if it has any
  std::string phase;  // the phase's own; empty: it learns from the job's
};

// Plans one phase of a job. Units are a function of the data, the job, the phase and the step alone; where the phase
// learns from answers of its own, also of those. Not thread-safe.
//
// Such a phase takes turns: a rollout answers prompts at one version, and the next StepsOfRollout steps learn from the
// answers, each of which comes once in each of its epochs, in the order of a permutation.
class Planner {
 public:
  static absl::StatusOr<std::unique_ptr<Planner>> Open(const v1::JobSpec& job, uint32_t phase_index,
                                                       const DataFolders& folders);
  ~Planner();

  // Whether the phase samples answers, and whether at `version` the next are due.
  bool samples() const;
  bool RolloutDue(uint64_t version) const;
  // Units that answer the prompts of `version`. `variables`: what the objective adapts (WorkUnit.statistics).
  // Requires RolloutDue.
  std::vector<v1::WorkUnit> Rollout(uint64_t epoch, uint64_t version,
                                    const std::map<std::string, double>& variables) const;
  // Takes the answers in; `statistics` go with the units that learn from them. INTERNAL if they are not what was asked.
  absl::Status TakeRollout(uint64_t version, absl::Span<v1::WorkResult> results,
                           const std::map<std::string, double>& statistics);
  // What the answers to prompts say, in well-formed UTF-8, in the order in which they were asked for: of phases whose
  // answers people compare. INTERNAL if they are not what was asked.
  struct ComparedPair {
    std::vector<text::Message> prompt;
    std::string answers[2];
  };
  absl::StatusOr<std::vector<ComparedPair>> Compared(absl::Span<const v1::WorkResult> results) const;

  // Training returns to a version before.
  void ForgetRollout();

  // Units of the step after `version`. Requires the answers of its rollout.
  std::vector<v1::WorkUnit> Training(uint64_t epoch, uint64_t version) const;
  // Units that score what is held out at `version`: first evaluation_units() of the phase's data; then, if that is not
  // the job's, those of the job's text.
  std::vector<v1::WorkUnit> Evaluation(uint64_t epoch, uint64_t version) const;

  uint32_t training_units() const;
  uint32_t evaluation_units() const;
  uint32_t rollout_units() const;
  // What the loss of the step after `version`, and of an evaluation, is a mean over, in all: tokens, pairs, answers or
  // an encoder's sequences; of the job's text, if that is scored too, tokens or sequences.
  uint64_t training_predictions(uint64_t version) const;
  uint64_t evaluation_predictions() const;
  uint64_t retained_predictions() const;
  // Tokens that are learnt in the step after `version`.
  uint64_t training_tokens(uint64_t version) const;
  // Steps in which the data is seen so many times.
  uint64_t StepsOf(double epochs) const;
  // Bytes of the text that an evaluation predicts.
  uint64_t evaluation_bytes() const;
  uint32_t vocab_size() const;
  // Of phases that sample: the tokenizer, and the token that ends an answer.
  const std::string& tokenizer_json() const;
  uint32_t end_of_turn() const;
  // Of phases that hide tokens: those with a meaning of their own, by their text.
  const std::map<std::string, uint32_t>& special_tokens() const;
  // Of the tokens and the tokenizer: what training on them is a function of.
  const std::string& data_fingerprint() const;

 private:
  struct Impl;
  explicit Planner(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::coordinator
