#include "evaluation/tasks_file.h"

#include <google/protobuf/descriptor.h>
#include <re2/re2.h>

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status.h"
#include "common/yaml_message.h"
#include "text/jinja.h"

namespace millrace::evaluation {
namespace {

using google::protobuf::FieldDescriptor;

// The types that may have a field; fields that are not here are for all.
struct OnlyFor {
  const char* field;
  std::vector<absl::string_view> types;
};
const std::vector<OnlyFor>& Restrictions() {
  static const auto* const kRestrictions = new std::vector<OnlyFor>{
      {"choices", {"choice"}},
      {"choices_from", {"choice"}},
      {"answer_index", {"choice"}},
      {"answer", {"choice", "exact_match", "pass_fail"}},
      {"answers_from", {"exact_match"}},
      {"target", {"perplexity"}},
      {"few_shot", {"choice", "exact_match", "pass_fail"}},
      {"few_shot_data", {"choice", "exact_match", "pass_fail"}},
      {"few_shot_pick", {"choice", "exact_match", "pass_fail"}},
      {"max_tokens", {"exact_match", "pass_fail"}},
      {"stop", {"exact_match", "pass_fail"}},
      {"temperature", {"exact_match", "pass_fail"}},
      {"top_k", {"exact_match", "pass_fail"}},
      {"top_p", {"exact_match", "pass_fail"}},
      {"extract", {"exact_match"}},
      {"extract_which", {"exact_match"}},
      {"normalize", {"exact_match"}},
      {"samples", {"pass_fail"}},
      {"pass_at", {"pass_fail"}},
      {"program", {"pass_fail"}},
      {"file", {"pass_fail"}},
      {"source", {"pass_fail"}},
      {"time_limit", {"pass_fail"}},
      {"memory_mb", {"pass_fail"}},
  };
  return *kRestrictions;
}

// Before defaults are filled in.
absl::Status CheckGiven(const v1::TaskSpec& task, const std::string& path) {
  for (const OnlyFor& only : Restrictions()) {
    const FieldDescriptor& field = *task.GetDescriptor()->FindFieldByName(only.field);
    const bool given = field.is_repeated() ? task.GetReflection()->FieldSize(task, &field) > 0
                                           : task.GetReflection()->HasField(task, &field);
    if (!given || std::find(only.types.begin(), only.types.end(), task.type()) != only.types.end()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".", only.field, ": only for ", absl::StrJoin(only.types, ", "), ", not ", task.type()));
  }
  return absl::OkStatus();
}

absl::Status CheckTemplate(const std::string& field, const std::string& source) {
  return Annotate(text::JinjaTemplate::Parse(source).status(), field);
}

absl::Status Missing(const std::string& path, absl::string_view fields, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", fields, " is missing: ", why));
}

// One of two fields, that is.
absl::Status CheckEither(const std::string& path, absl::string_view one, bool has_one, absl::string_view other,
                         bool has_other, absl::string_view why) {
  if (has_one && has_other) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", one, " and ", other, ": one of them"));
  }
  return has_one || has_other ? absl::OkStatus() : Missing(path, absl::StrCat(one, " or ", other), why);
}

absl::Status CheckChoice(const v1::TaskSpec& task, const std::string& path) {
  MILLRACE_RETURN_IF_ERROR(CheckEither(path, "choices", task.choices_size() > 0, "choices_from",
                                       task.has_choices_from(), "what a choice is made of"));
  MILLRACE_RETURN_IF_ERROR(
      CheckEither(path, "answer", task.has_answer(), "answer_index", task.has_answer_index(), "which choice is right"));
  if (task.choices_size() == 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".choices: at least two are wanted"));
  }
  return absl::OkStatus();
}

absl::Status CheckExactMatch(const v1::TaskSpec& task, const std::string& path) {
  MILLRACE_RETURN_IF_ERROR(
      CheckEither(path, "answer", task.has_answer(), "answers_from", task.has_answers_from(), "what is right"));
  if (const re2::RE2 pattern(task.extract(), re2::RE2::Quiet); !pattern.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".extract: ", Shown(task.extract()), " is no regular expression: ", pattern.error()));
  }
  const auto& steps = task.normalize();
  if (steps.size() > 1 && std::find(steps.begin(), steps.end(), "none") != steps.end()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".normalize: none stands alone"));
  }
  return absl::OkStatus();
}

absl::Status CheckPassFail(const v1::TaskSpec& task, const std::string& path) {
  if (task.program().empty()) return Missing(path, "program", "what accepts what is generated");
  if (task.few_shot() > 0 && !task.has_answer()) {
    return Missing(path, "answer", "what few-shot examples show behind their prompts");
  }
  for (int i = 0; i < task.pass_at_size(); ++i) {
    if (task.pass_at(i) <= task.samples()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".pass_at.", i, ": ", task.pass_at(i), " is more than the ", task.samples(), " samples"));
  }
  if (task.samples() > 1 && task.temperature() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".temperature: at 0 all ", task.samples(), " samples are the same"));
  }
  MILLRACE_RETURN_IF_ERROR(CheckName(path + ".file", task.file()));
  for (int i = 0; i < task.program_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(CheckTemplate(absl::StrCat(path, ".program.", i), task.program(i)));
  }
  return CheckTemplate(path + ".source", task.source());
}

absl::Status CheckTask(const v1::TaskSpec& task, const std::string& path) {
  MILLRACE_RETURN_IF_ERROR(CheckName(path + ".name", task.name()));
  if (task.type() == "choice") MILLRACE_RETURN_IF_ERROR(CheckChoice(task, path));
  if (task.type() == "exact_match") MILLRACE_RETURN_IF_ERROR(CheckExactMatch(task, path));
  if (task.type() == "pass_fail") MILLRACE_RETURN_IF_ERROR(CheckPassFail(task, path));
  if (task.type() == "perplexity" && !task.has_target()) return Missing(path, "target", "the text that is predicted");
  if (task.chat() && task.prompt().empty()) return Missing(path, "prompt", "what the user says in a chat");
  for (int i = 0; i < task.choices_size(); ++i) {
    MILLRACE_RETURN_IF_ERROR(CheckTemplate(absl::StrCat(path, ".choices.", i), task.choices(i)));
  }
  MILLRACE_RETURN_IF_ERROR(CheckTemplate(path + ".prompt", task.prompt()));
  MILLRACE_RETURN_IF_ERROR(CheckTemplate(path + ".answer", task.answer()));
  MILLRACE_RETURN_IF_ERROR(CheckTemplate(path + ".answer_index", task.answer_index()));
  MILLRACE_RETURN_IF_ERROR(CheckTemplate(path + ".target", task.target()));
  for (int i = 0; i < task.stop_size(); ++i) {
    if (task.stop(i).empty()) return absl::InvalidArgumentError(absl::StrCat(path, ".stop.", i, ": empty text"));
  }
  const std::vector<std::string> metrics = MetricsOf(task.type());
  std::set<std::string> seen;
  for (int i = 0; i < task.metrics_size(); ++i) {
    if (std::find(metrics.begin(), metrics.end(), task.metrics(i)) == metrics.end()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".metrics.", i, ": the type ", task.type(), " has ",
                                                     absl::StrJoin(metrics, ", "), ", not ", task.metrics(i)));
    }
    if (!seen.insert(task.metrics(i)).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".metrics.", i, ": ", task.metrics(i), " is given twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status FillAndCheck(v1::TasksFile* tasks) {
  for (int i = 0; i < tasks->tasks_size(); ++i) {
    // A task without a type is refused below.
    if (!tasks->tasks(i).has_type()) continue;
    MILLRACE_RETURN_IF_ERROR(CheckGiven(tasks->tasks(i), absl::StrCat("tasks.", i)));
  }
  FillRuleDefaults(tasks);
  MILLRACE_RETURN_IF_ERROR(CheckRules(*tasks));
  std::set<std::string> names;
  for (int i = 0; i < tasks->tasks_size(); ++i) {
    v1::TaskSpec& task = *tasks->mutable_tasks(i);
    const std::string path = absl::StrCat("tasks.", i);
    if (task.metrics().empty()) {
      for (const std::string& metric : MetricsOf(task.type())) task.add_metrics(metric);
    }
    MILLRACE_RETURN_IF_ERROR(CheckTask(task, path));
    if (!names.insert(task.name()).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".name: there is already a task ", task.name()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> MetricsOf(absl::string_view type) {
  if (type == "choice") return {"acc", "acc_norm", "acc_bytes"};
  if (type == "exact_match") return {"exact_match"};
  if (type == "pass_fail") return {"pass"};
  return {"word_perplexity", "byte_perplexity", "bits_per_byte"};
}

absl::StatusOr<v1::TasksFile> ParseTasks(absl::string_view yaml, absl::string_view file_name) {
  v1::TasksFile tasks;
  MILLRACE_RETURN_IF_ERROR(ParseYaml(yaml, {std::string(file_name), "tasks"}, &tasks));
  MILLRACE_RETURN_IF_ERROR(Annotate(FillAndCheck(&tasks), file_name));
  return tasks;
}

absl::StatusOr<v1::TasksFile> ReadTasksFile(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path, kMaxYamlBytes));
  return ParseTasks(yaml, path);
}

}  // namespace millrace::evaluation
