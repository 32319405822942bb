#include "evaluation/questions.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/philox.h"
#include "common/status.h"
#include "common/yaml_message.h"
#include "text/corpus.h"
#include "text/sources.h"

namespace millrace::evaluation {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kFewShotPurpose = 0x46455753484F54;  // "FEWSHOT"
constexpr int kMaxDepth = 32;                           // of lists and objects in a line
constexpr size_t kMaxExamples = 10'000'000;
constexpr size_t kMaxChoices = 10'000;

absl::StatusOr<std::vector<Example>> ReadExamples(const google::protobuf::RepeatedPtrField<std::string>& paths,
                                                  const std::string& folder) {
  v1::DataSpec data;
  for (const std::string& path : paths) {
    v1::SourceSpec& source = *data.add_sources();
    source.set_path(path);
    source.set_format("jsonl");
  }
  absl::StatusOr<text::SourceFiles> files = text::FindSources(data, folder);
  if (!files.ok()) {
    // It calls them the sources of a job.
    absl::string_view message = files.status().message();
    if (absl::ConsumePrefix(&message, "data.sources[")) message.remove_prefix(message.find("]: ") + 3);
    return absl::Status(files.status().code(), message);
  }
  const text::SourceFiles& found = *files;
  if (!found.skips.empty()) return absl::InvalidArgumentError(found.skips[0]);
  std::vector<Example> examples;
  std::string skipped;
  const auto skip = [&skipped](std::string why) {
    if (skipped.empty()) skipped = std::move(why);
  };
  for (const text::SourceFile& file : found.files) {
    const auto take = [&](absl::string_view line, uint64_t number) -> absl::Status {
      const std::string where = absl::StrCat(file.shown, ":", number);
      const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxDepth; };
      Json fields = Json::parse(line.begin(), line.end(), bounded, /*allow_exceptions=*/false);
      if (!fields.is_object()) {
        return absl::InvalidArgumentError(absl::StrCat(where, ": an object of JSON is wanted, as in {\"field\": …}"));
      }
      if (examples.size() == kMaxExamples) {
        return absl::ResourceExhaustedError(absl::StrCat(where, ": more than ", kMaxExamples, " examples"));
      }
      examples.push_back({std::move(fields), where});
      return absl::OkStatus();
    };
    MILLRACE_RETURN_IF_ERROR(text::ReadLines(file, take, skip));
    if (!skipped.empty()) return absl::InvalidArgumentError(skipped);
  }
  return examples;
}

// The list of strings at `path`, dots reaching into objects.
absl::StatusOr<std::vector<std::string>> ListAt(const Json& fields, absl::string_view path) {
  const Json* at = &fields;
  for (const absl::string_view part : absl::StrSplit(path, '.')) {
    const std::string name(part);
    const auto found = at->is_object() ? at->find(name) : at->end();
    if (!at->is_object() || found == at->end()) {
      return absl::InvalidArgumentError(absl::StrCat("the example has no field ", Shown(path)));
    }
    at = &*found;
  }
  if (!at->is_array() || at->empty() || at->size() > kMaxChoices) {
    return absl::InvalidArgumentError(absl::StrCat("the field ", Shown(path), " is no list of texts"));
  }
  std::vector<std::string> texts;
  for (const Json& item : *at) {
    if (!item.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("the list ", Shown(path), " holds something that is no text"));
    }
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

// The templates of a task, parsed once.
class Templates {
 public:
  static absl::StatusOr<Templates> Parse(const v1::TaskSpec& task) {
    Templates made(task);
    const auto parse = [](const std::string& source, absl::string_view field,
                          std::optional<text::JinjaTemplate>* to) -> absl::Status {
      absl::StatusOr<text::JinjaTemplate> parsed = text::JinjaTemplate::Parse(source);
      if (!parsed.ok()) return Annotate(parsed.status(), field);
      to->emplace(*std::move(parsed));
      return absl::OkStatus();
    };
    MILLRACE_RETURN_IF_ERROR(parse(task.prompt(), "prompt", &made.prompt_));
    if (task.has_answer()) MILLRACE_RETURN_IF_ERROR(parse(task.answer(), "answer", &made.answer_));
    if (task.has_answer_index()) {
      MILLRACE_RETURN_IF_ERROR(parse(task.answer_index(), "answer_index", &made.answer_index_));
    }
    if (task.has_target()) MILLRACE_RETURN_IF_ERROR(parse(task.target(), "target", &made.target_));
    for (int i = 0; i < task.choices_size(); ++i) {
      std::optional<text::JinjaTemplate> choice;
      MILLRACE_RETURN_IF_ERROR(parse(task.choices(i), absl::StrCat("choices.", i), &choice));
      made.choices_.push_back(*std::move(choice));
    }
    return made;
  }

  absl::StatusOr<std::string> Prompt(const Example& example) const { return Render(*prompt_, "prompt", example); }

  // All but what comes of other examples.
  absl::StatusOr<Question> Ask(const Example& example) const {
    Question question;
    question.where = example.where;
    if (task_.type() == "choice") {
      MILLRACE_ASSIGN_OR_RETURN(question.continuations, Choices(example));
      MILLRACE_ASSIGN_OR_RETURN(question.right, Right(example, question.continuations));
    } else if (task_.type() == "exact_match") {
      MILLRACE_ASSIGN_OR_RETURN(question.answers, Answers(example));
    } else if (task_.type() == "pass_fail") {
      question.fields = example.fields;
    } else {
      MILLRACE_ASSIGN_OR_RETURN(std::string target, Render(*target_, "target", example));
      if (target.empty()) return Wrong(example, "target", "an empty text is not predicted");
      question.continuations = {std::move(target)};
    }
    return question;
  }

  // What a few-shot example shows behind its prompt.
  absl::StatusOr<std::string> Shown(const Example& example) const {
    if (task_.type() == "choice") {
      MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::string> choices, Choices(example));
      MILLRACE_ASSIGN_OR_RETURN(const size_t right, Right(example, choices));
      return choices[right];
    }
    if (task_.type() == "pass_fail") return Render(*answer_, "answer", example);
    MILLRACE_ASSIGN_OR_RETURN(const std::vector<std::string> answers, Answers(example));
    return answers[0];
  }

 private:
  explicit Templates(const v1::TaskSpec& task) : task_(task) {}

  absl::Status Wrong(const Example& example, absl::string_view field, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(example.where, ": task ", task_.name(), ": ", field, ": ", what));
  }

  absl::StatusOr<std::string> Render(const text::JinjaTemplate& parsed, absl::string_view field,
                                     const Example& example) const {
    absl::StatusOr<std::string> text = RenderTemplate(parsed, example.fields);
    if (!text.ok()) return Wrong(example, field, text.status().message());
    return text;
  }

  absl::StatusOr<std::vector<std::string>> Choices(const Example& example) const {
    std::vector<std::string> choices;
    if (task_.has_choices_from()) {
      absl::StatusOr<std::vector<std::string>> list = ListAt(example.fields, task_.choices_from());
      if (!list.ok()) return Wrong(example, "choices_from", list.status().message());
      choices = *std::move(list);
      if (choices.size() < 2) return Wrong(example, "choices_from", "at least two choices are wanted");
    }
    for (size_t i = 0; i < choices_.size(); ++i) {
      MILLRACE_ASSIGN_OR_RETURN(choices.emplace_back(), Render(choices_[i], absl::StrCat("choices.", i), example));
    }
    for (const std::string& choice : choices) {
      if (choice.empty()) return Wrong(example, "choices", "an empty choice cannot be scored");
    }
    return choices;
  }

  absl::StatusOr<size_t> Right(const Example& example, const std::vector<std::string>& choices) const {
    if (answer_index_.has_value()) {
      MILLRACE_ASSIGN_OR_RETURN(const std::string text, Render(*answer_index_, "answer_index", example));
      uint64_t index = 0;
      if (!absl::SimpleAtoi(text, &index) || index >= choices.size()) {
        return Wrong(example, "answer_index",
                     absl::StrCat("a whole number below ", choices.size(), " is wanted, not ", millrace::Shown(text)));
      }
      return static_cast<size_t>(index);
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string answer, Render(*answer_, "answer", example));
    for (size_t i = 0; i < choices.size(); ++i) {
      if (absl::StripAsciiWhitespace(choices[i]) == absl::StripAsciiWhitespace(answer)) return i;
    }
    return Wrong(example, "answer", absl::StrCat(millrace::Shown(answer), " is none of the choices"));
  }

  absl::StatusOr<std::vector<std::string>> Answers(const Example& example) const {
    if (task_.has_answers_from()) {
      absl::StatusOr<std::vector<std::string>> list = ListAt(example.fields, task_.answers_from());
      if (!list.ok()) return Wrong(example, "answers_from", list.status().message());
      return list;
    }
    MILLRACE_ASSIGN_OR_RETURN(std::string answer, Render(*answer_, "answer", example));
    return std::vector<std::string>{std::move(answer)};
  }

  const v1::TaskSpec& task_;
  std::optional<text::JinjaTemplate> prompt_, answer_, answer_index_, target_;
  std::vector<text::JinjaTemplate> choices_;
};

}  // namespace

absl::StatusOr<std::string> RenderTemplate(const text::JinjaTemplate& parsed, const Json& fields,
                                           absl::Span<const std::pair<std::string, std::string>> more) {
  text::JinjaTemplate::Variables variables;
  variables.values = &fields;
  variables.strings.assign(more.begin(), more.end());
  variables.strict = true;
  MILLRACE_ASSIGN_OR_RETURN(text::JinjaOutput output, parsed.Render(variables));
  return std::move(output.rendered.text);
}

std::vector<size_t> DrawExamples(uint64_t seed, uint64_t index, size_t n, size_t except, size_t count) {
  const Philox key = Philox(seed).Derive(kFewShotPurpose);
  // The first steps of a shuffle (Fisher and Yates) of the numbers without `except`; only what has moved is kept.
  const size_t all = n - (except < n ? 1 : 0);
  std::map<size_t, size_t> moved;
  const auto at = [&](size_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  std::vector<size_t> drawn;
  for (size_t i = 0; i < count; ++i) {
    const auto words = key(index, i);
    const uint64_t word = words[0] | uint64_t{words[1]} << 32;
    const size_t other = i + static_cast<size_t>((static_cast<unsigned __int128>(word) * (all - i)) >> 64);
    const size_t taken = at(other);
    moved[other] = at(i);
    drawn.push_back(taken + (taken >= except ? 1 : 0));
  }
  return drawn;
}

absl::StatusOr<std::vector<Question>> MakeQuestions(const v1::TaskSpec& task, const std::string& folder) {
  MILLRACE_ASSIGN_OR_RETURN(const Templates templates, Templates::Parse(task));
  absl::StatusOr<std::vector<Example>> data = ReadExamples(task.data(), folder);
  if (!data.ok()) return Annotate(data.status(), absl::StrCat("task ", task.name(), ": data"));
  if (data->empty()) return absl::InvalidArgumentError(absl::StrCat("task ", task.name(), ": data: no examples"));
  const std::vector<Example>* shots = &*data;
  std::vector<Example> own_shots;
  if (task.few_shot_data_size() > 0) {
    absl::StatusOr<std::vector<Example>> read = ReadExamples(task.few_shot_data(), folder);
    if (!read.ok()) return Annotate(read.status(), absl::StrCat("task ", task.name(), ": few_shot_data"));
    own_shots = *std::move(read);
    shots = &own_shots;
  }
  const size_t few = task.few_shot(), pool = shots->size() - (shots == &*data ? 1 : 0);
  if (few > pool) {
    return absl::InvalidArgumentError(
        absl::StrCat("task ", task.name(), ": few_shot: ", few, " examples are wanted, there are ", pool));
  }
  const size_t count = task.has_limit() ? std::min<size_t>(data->size(), task.limit()) : data->size();
  std::vector<Question> questions;
  for (size_t i = 0; i < count; ++i) {
    const Example& example = (*data)[i];
    MILLRACE_ASSIGN_OR_RETURN(Question question, templates.Ask(example));
    const size_t except = shots == &*data ? i : shots->size();
    std::vector<size_t> picked;
    if (task.few_shot_pick() == "drawn") {
      picked = DrawExamples(task.seed(), i, shots->size(), except, few);
    } else {
      for (size_t shot = 0; picked.size() < few; ++shot) {
        if (shot != except) picked.push_back(shot);
      }
    }
    std::vector<std::string> parts;
    if (!task.description().empty()) {
      parts.push_back(task.description());
      question.messages.push_back({"system", task.description()});
    }
    for (const size_t shot : picked) {
      MILLRACE_ASSIGN_OR_RETURN(const std::string prompt, templates.Prompt((*shots)[shot]));
      MILLRACE_ASSIGN_OR_RETURN(const std::string answer, templates.Shown((*shots)[shot]));
      question.messages.push_back({"user", prompt});
      question.messages.push_back({"assistant", answer});
      parts.push_back(absl::StrCat(prompt, prompt.empty() ? "" : task.target_delimiter(), answer));
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string prompt, templates.Prompt(example));
    question.messages.push_back({"user", prompt});
    parts.push_back(prompt);
    if (task.chat()) {
      if (prompt.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(example.where, ": task ", task.name(), ": prompt: empty, which nobody asks in a chat"));
      }
    } else {
      question.messages.clear();
      question.context = absl::StrJoin(parts, task.separator());
      if (!prompt.empty()) question.delimiter = task.target_delimiter();
    }
    questions.push_back(std::move(question));
  }
  return questions;
}

}  // namespace millrace::evaluation
