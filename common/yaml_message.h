// Reads YAML strictly into messages, driven by the rules beside their fields (proto/millrace/v1/field_options.proto):
// an unknown field, one given twice, a value of the wrong type or out of its bounds is an error that names the line.
#pragma once

#include <google/protobuf/message.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace millrace {

inline constexpr size_t kMaxYamlBytes = 1 << 20;

// A file, in messages.
struct YamlFile {
  std::string name;
  std::string holds;  // "job": "the job is too large", "a job file is one document"
};

// Merges the fields that `yaml` gives into `message`. INVALID_ARGUMENT:
//   job.yaml:12: unknown field 'layer' in model; did you mean 'layers'?
absl::Status ParseYaml(absl::string_view yaml, const YamlFile& file, google::protobuf::Message* message);

// Sets one field: "phases.0.stop.max_steps=20", a dotted path with list indices as numbers, then a value in YAML.
// INVALID_ARGUMENT naming the override.
absl::Status ApplyYamlOverride(absl::string_view override_text, const std::string& holds,
                               google::protobuf::Message* message);

// Gives every absent field the default of its rule, if it has one. Idempotent.
void FillRuleDefaults(google::protobuf::Message* message);

// Checks every field's rule. INVALID_ARGUMENT names the field by its path, behind `path`.
absl::Status CheckRules(const google::protobuf::Message& message, const std::string& path = "");

// Of what names files: letters, digits, '-', '_' and '.'. INVALID_ARGUMENT naming the field.
absl::Status CheckName(absl::string_view field, const std::string& name);

// A value in quotation marks for messages, cut if it is long.
std::string Shown(absl::string_view text);

}  // namespace millrace
