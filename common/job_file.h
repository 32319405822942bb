// Reads job files: YAML mapped strictly onto the message JobSpec, driven by the rules beside its fields
// (proto/millrace/v1/field_options.proto). docs/job-file.md is for users.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace {

// Reads a file, applies `overrides` ("phases.0.stop.max_steps=20": a dotted path with list indices as numbers, then a
// value in YAML), fills in defaults and validates. Errors name the file and the line, or the override:
//   job.yaml:12: unknown field 'layer' in model; did you mean 'layers'?
absl::StatusOr<v1::JobSpec> ReadJobFile(const std::string& path, absl::Span<const std::string> overrides);

// The same of text; `file_name` is for messages.
absl::StatusOr<v1::JobSpec> ParseJob(absl::string_view yaml, absl::string_view file_name,
                                     absl::Span<const std::string> overrides);

// A phase's `from` that names an earlier phase's checkpoint.
struct PhaseStart {
  std::string phase;
  std::string which;  // "best", "last" or a step
};
// "PHASE@WHICH"; nothing for a folder and for an absent `from`.
std::optional<PhaseStart> ParsePhaseStart(absl::string_view from);

// What an objective trains and learns from.
struct ObjectiveTraits {
  bool learns = true;           // false: answers are sampled for people to compare
  bool trains_rewards = false;  // a model with a scalar head
  bool samples = false;         // answers of the model that is trained
  bool prefers = false;         // by the log-probabilities of whole answers
  bool has_reference = false;   // a second model that stays as it is
  bool hides = false;           // tokens, which are to be told: an encoder learns
  bool predicts_text = false;   // the loss is nats a token of text
  bool pairs = false;           // examples are pairs of answers
  absl::string_view data;       // what its examples are, for messages; empty: text
};
// Of a name that the rule of PhaseSpec.objective allows; empty: its default.
ObjectiveTraits TraitsOf(absl::string_view objective);

// The earlier phase whose ratings a source is, PHASE@ratings; nothing for files.
std::optional<std::string> RatedPhase(const v1::SourceSpec& source);
// Whether some of a phase's sources are.
bool LearnsFromRatings(const v1::PhaseSpec& phase);

// Where the weights of a phase come from: its `from`, or else the best checkpoint of the last phase before that trains
// a language model. Empty: new weights.
std::string StartOfPhase(const v1::JobSpec& job, int phase);

// Tokens of text that a sequence of the phase can have: the model's context without what an adapter puts before them.
uint32_t TextContext(const v1::ModelSpec& model, const v1::PhaseSpec& phase);

// Steps that learn from the answers of one rollout. Requires an objective that samples, and a valid job.
uint64_t StepsOfRollout(const v1::PhaseSpec& phase);

// Gives every absent field its default: the one beside the field, or else one that follows from other fields. Fields
// that stay absent are those that documentation calls optional (a tokenizer's path). Idempotent.
void FillDefaults(v1::JobSpec* job);

// The defaults that follow from the adapter's type and the model's family.
void FillAdapterDefaults(const v1::ModelSpec& model, v1::AdapterSpec* adapter);

// The defaults that follow from the number of steps, which with max_epochs is known once the data is.
void FillPhaseSteps(v1::PhaseSpec* phase);

// Checks every field's rule and what must hold between fields. INVALID_ARGUMENT names the field by its path.
absl::Status ValidateJob(const v1::JobSpec& job);

}  // namespace millrace
