#include "text/examples.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/checksum.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/clean.h"
#include "text/corpus.h"

namespace millrace::text {
namespace {

using Json = nlohmann::json;
using Messages = std::vector<Message>;

constexpr int kMaxDepth = 64;
constexpr size_t kMaxMessages = 4096;
constexpr size_t kMaxFields = 16;
constexpr absl::string_view kHuman = "\n\nHuman:";
constexpr absl::string_view kAssistant = "\n\nAssistant:";

absl::Status Wrong(std::string what) { return absl::InvalidArgumentError(std::move(what)); }

bool IsBlank(absl::string_view text) { return absl::StripAsciiWhitespace(text).empty(); }

// Null if the field is absent or null.
const Json* Find(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

// The first of the fields that is there.
std::pair<const char*, const Json*> FindAny(const Json& object, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const Json* value = Find(object, name)) return {name, value};
  }
  return {*names.begin(), nullptr};
}

absl::Status Missing(ExampleKind kind, const char* name) {
  return Wrong(absl::StrCat("there is no field '", name, "'; ", NameOf(kind), " needs ", LayoutsOf(kind)));
}

absl::StatusOr<std::string> RoleOf(const std::string& role, const std::string& where) {
  if (role == "system" || role == "user" || role == "assistant") return role;
  if (role == "human") return "user";
  if (role == "gpt") return "assistant";
  return Wrong(absl::StrCat(where, " is '", role, "'; system, user or assistant"));
}

absl::StatusOr<Messages> ReadMessages(const Json& list, const std::string& field) {
  if (list.size() > kMaxMessages) return Wrong(absl::StrCat(field, " has more than ", kMaxMessages, " messages"));
  Messages messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat(field, "[", i, "]");
    if (!list[i].is_object()) return Wrong(where + " is no object");
    const auto [role_name, role] = FindAny(list[i], {"role", "from"});
    const auto [content_name, content] = FindAny(list[i], {"content", "value"});
    if (role == nullptr || !role->is_string()) return Wrong(absl::StrCat(where, ".", role_name, " is no string"));
    if (content == nullptr || !content->is_string())
      return Wrong(absl::StrCat(where, ".", content_name, " is no string"));
    MILLRACE_ASSIGN_OR_RETURN(std::string known, RoleOf(role->get<std::string>(), absl::StrCat(where, ".", role_name)));
    messages.push_back({std::move(known), content->get<std::string>()});
  }
  if (messages.empty()) return Wrong(field + " is empty");
  return messages;
}

// A string is one message of `role`.
absl::StatusOr<Messages> ReadTurns(const Json& value, const std::string& field, const char* role) {
  if (value.is_string()) return Messages{{role, value.get<std::string>()}};
  if (value.is_array()) return ReadMessages(value, field);
  return Wrong(field + " is neither a string nor a list of messages");
}

absl::StatusOr<std::string> ReadString(const Json& value, const char* field) {
  if (!value.is_string()) return Wrong(absl::StrCat("the field '", field, "' is no string"));
  return value.get<std::string>();
}

// What `prompt`, `messages` or Alpaca's fields say before any response; empty if there are none of them.
absl::StatusOr<Messages> ReadPrompt(const Json& object) {
  Messages messages;
  if (const Json* instruction = Find(object, "instruction"); instruction != nullptr && !object.contains("prompt")) {
    MILLRACE_ASSIGN_OR_RETURN(std::string content, ReadString(*instruction, "instruction"));
    if (const Json* input = Find(object, "input")) {
      MILLRACE_ASSIGN_OR_RETURN(const std::string more, ReadString(*input, "input"));
      if (!IsBlank(more)) absl::StrAppend(&content, "\n\n", more);
    }
    messages = {{"user", std::move(content)}};
  } else if (const Json* prompt = Find(object, "prompt")) {
    MILLRACE_ASSIGN_OR_RETURN(messages, ReadTurns(*prompt, "prompt", "user"));
  }
  const Json* system = Find(object, "system");
  if (system == nullptr || messages.empty() || messages[0].role == "system") return messages;
  MILLRACE_ASSIGN_OR_RETURN(std::string content, ReadString(*system, "system"));
  if (!IsBlank(content)) messages.insert(messages.begin(), {"system", std::move(content)});
  return messages;
}

// One answer of the assistant.
absl::StatusOr<std::string> ReadResponse(const Json& value, const char* field) {
  MILLRACE_ASSIGN_OR_RETURN(Messages messages, ReadTurns(value, field, "assistant"));
  if (messages.size() != 1 || messages[0].role != "assistant")
    return Wrong(absl::StrCat("the field '", field, "' is not one message of the assistant"));
  return std::move(messages[0].content);
}

// Anthropic's dialogues: turns behind "\n\nHuman:" and "\n\nAssistant:".
absl::StatusOr<Messages> ReadDialogue(absl::string_view text, const char* field) {
  Messages messages;
  while (!text.empty()) {
    const bool human = absl::ConsumePrefix(&text, kHuman);
    if (!human && !absl::ConsumePrefix(&text, kAssistant)) {
      return Wrong(
          absl::StrCat("the field '", field, "' does not begin with \"\\n\\nHuman:\", and there is no prompt"));
    }
    const size_t end = std::min({text.find(kHuman), text.find(kAssistant), text.size()});
    messages.push_back({human ? "user" : "assistant", std::string(absl::StripAsciiWhitespace(text.substr(0, end)))});
    text.remove_prefix(end);
    if (messages.size() > kMaxMessages)
      return Wrong(absl::StrCat("the field '", field, "' has more than ", kMaxMessages, " turns"));
  }
  return messages;
}

absl::Status CheckPrompt(const Messages& messages) {
  if (messages.empty() || messages.back().role != "user") return Wrong("the prompt does not end with the user");
  for (const Message& message : messages) {
    if (IsBlank(message.content)) return Wrong(absl::StrCat("empty ", message.role == "user" ? "prompt" : "message"));
  }
  return absl::OkStatus();
}

// What must hold before and after cleaning.
absl::Status Check(ExampleKind kind, const Example& example) {
  if (kind == ExampleKind::kSft) {
    bool answered = false;
    for (const Message& message : example.messages) {
      if (IsBlank(message.content)) {
        return Wrong(message.role == "assistant"
                         ? "empty response"
                         : absl::StrCat("empty ", message.role == "user" ? "prompt" : "message"));
      }
      answered |= message.role == "assistant";
    }
    return answered ? absl::OkStatus() : Wrong("the assistant says nothing");
  }
  MILLRACE_RETURN_IF_ERROR(CheckPrompt(example.messages));
  if (kind == ExampleKind::kPrompts) return absl::OkStatus();
  if (IsBlank(example.response)) return Wrong("empty response");
  if (kind == ExampleKind::kLabelled) return absl::OkStatus();
  if (IsBlank(example.rejected)) return Wrong("empty response (rejected)");
  if (example.response == example.rejected) return Wrong("an identical pair: chosen and rejected are the same");
  return absl::OkStatus();
}

absl::Status ReadSft(const Json& object, Example* example) {
  if (const auto [name, list] = FindAny(object, {"messages", "conversations"}); list != nullptr) {
    if (!list->is_array()) return Wrong(absl::StrCat("the field '", name, "' is no list of messages"));
    MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadMessages(*list, name));
    return absl::OkStatus();
  }
  MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadPrompt(object));
  if (example->messages.empty()) return Missing(ExampleKind::kSft, "prompt");
  const auto [name, response] = FindAny(object, {"response", "completion", "output"});
  if (response == nullptr) return Missing(ExampleKind::kSft, name);
  MILLRACE_ASSIGN_OR_RETURN(Messages answer, ReadTurns(*response, name, "assistant"));
  example->messages.insert(example->messages.end(), answer.begin(), answer.end());
  return absl::OkStatus();
}

absl::StatusOr<float> ReadMargin(const Json& object) {
  const auto number = [&](const char* name) -> absl::StatusOr<double> {
    const Json* value = Find(object, name);
    if (value == nullptr || !value->is_number()) return Wrong(absl::StrCat("the field '", name, "' is no number"));
    return value->get<double>();
  };
  double margin = 0;
  if (Find(object, "margin") != nullptr) {
    MILLRACE_ASSIGN_OR_RETURN(margin, number("margin"));
  } else if (Find(object, "score_chosen") != nullptr || Find(object, "score_rejected") != nullptr) {
    MILLRACE_ASSIGN_OR_RETURN(const double chosen, number("score_chosen"));
    MILLRACE_ASSIGN_OR_RETURN(const double rejected, number("score_rejected"));
    margin = chosen - rejected;
  }
  if (!(margin >= 0 && margin <= 1e6))
    return Wrong(absl::StrCat("the margin of chosen over rejected is ", margin, "; it must lie between 0 and 1e6"));
  return static_cast<float>(margin);
}

absl::Status ReadPair(const Json& object, Example* example) {
  const Json* chosen = Find(object, "chosen");
  const Json* rejected = Find(object, "rejected");
  if (chosen == nullptr || rejected == nullptr)
    return Missing(ExampleKind::kPairs, chosen == nullptr ? "chosen" : "rejected");
  MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadPrompt(object));
  Messages dialogues[2];
  for (const int side : {0, 1}) {
    const Json& value = side == 0 ? *chosen : *rejected;
    const char* name = side == 0 ? "chosen" : "rejected";
    if (value.is_string() && example->messages.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(dialogues[side], ReadDialogue(value.get_ref<const std::string&>(), name));
    } else {
      MILLRACE_ASSIGN_OR_RETURN(dialogues[side], ReadTurns(value, name, "assistant"));
    }
    if (dialogues[side].empty() || dialogues[side].back().role != "assistant")
      return Wrong(absl::StrCat("the field '", name, "' does not end with the assistant"));
    (side == 0 ? example->response : example->rejected) = std::move(dialogues[side].back().content);
    dialogues[side].pop_back();
  }
  if (dialogues[0] != dialogues[1]) return Wrong("chosen and rejected differ before their last answers");
  // A dialogue that is given whole says more than the prompt beside it, which is its first message or all but the
  // answer.
  if (!dialogues[0].empty()) example->messages = std::move(dialogues[0]);
  if (example->messages.empty()) return Missing(ExampleKind::kPairs, "prompt");
  if (const Json* tie = Find(object, "tie")) {
    if (!tie->is_boolean()) return Wrong("the field 'tie' is neither true nor false");
    example->tie = tie->get<bool>();
  }
  MILLRACE_ASSIGN_OR_RETURN(example->margin, ReadMargin(object));
  if (example->tie && example->margin != 0) return Wrong("a tie has no margin");
  return absl::OkStatus();
}

absl::Status ReadLabelled(const Json& object, Example* example) {
  MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadPrompt(object));
  if (example->messages.empty()) return Missing(ExampleKind::kLabelled, "prompt");
  const auto [name, response] = FindAny(object, {"completion", "response"});
  if (response == nullptr) return Missing(ExampleKind::kLabelled, name);
  MILLRACE_ASSIGN_OR_RETURN(example->response, ReadResponse(*response, name));
  const Json* label = Find(object, "label");
  if (label == nullptr) return Missing(ExampleKind::kLabelled, "label");
  if (!label->is_boolean()) return Wrong("the field 'label' is neither true nor false");
  example->label = label->get<bool>();
  return absl::OkStatus();
}

absl::Status ReadPromptExample(const Json& object, Example* example) {
  if (const auto [name, list] = FindAny(object, {"messages", "conversations"}); list != nullptr) {
    if (!list->is_array()) return Wrong(absl::StrCat("the field '", name, "' is no list of messages"));
    MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadMessages(*list, name));
  } else {
    MILLRACE_ASSIGN_OR_RETURN(example->messages, ReadPrompt(object));
  }
  if (example->messages.empty()) return Missing(ExampleKind::kPrompts, "prompt");
  if (const Json* answer = Find(object, "answer")) {
    MILLRACE_ASSIGN_OR_RETURN(example->answer, ReadString(*answer, "answer"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseObject(absl::string_view line) {
  const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxDepth; };
  Json object = Json::parse(line.begin(), line.end(), bounded, /*allow_exceptions=*/false);
  if (object.is_discarded()) return Wrong("not JSON");
  if (!object.is_object()) return Wrong("not a JSON object");
  return object;
}

}  // namespace

absl::string_view NameOf(ExampleKind kind) {
  switch (kind) {
    case ExampleKind::kSft:
      return "sft";
    case ExampleKind::kPairs:
      return "pairs";
    case ExampleKind::kLabelled:
      return "labelled";
    case ExampleKind::kPrompts:
      return "prompts";
  }
  return "";
}

absl::string_view LayoutsOf(ExampleKind kind) {
  switch (kind) {
    case ExampleKind::kSft:
      return "{prompt, response}, {messages}, {conversations} or {instruction, input, output}";
    case ExampleKind::kPairs:
      return "{prompt, chosen, rejected} or whole dialogues as {chosen, rejected}";
    case ExampleKind::kLabelled:
      return "{prompt, completion, label}";
    case ExampleKind::kPrompts:
      return "{prompt} or {messages}, with or without {answer}";
  }
  return "";
}

absl::StatusOr<Example> ParseExample(ExampleKind kind, absl::string_view line) {
  MILLRACE_ASSIGN_OR_RETURN(const Json object, ParseObject(line));
  Example example;
  switch (kind) {
    case ExampleKind::kSft:
      MILLRACE_RETURN_IF_ERROR(ReadSft(object, &example));
      break;
    case ExampleKind::kPairs:
      MILLRACE_RETURN_IF_ERROR(ReadPair(object, &example));
      break;
    case ExampleKind::kLabelled:
      MILLRACE_RETURN_IF_ERROR(ReadLabelled(object, &example));
      break;
    case ExampleKind::kPrompts:
      MILLRACE_RETURN_IF_ERROR(ReadPromptExample(object, &example));
      break;
  }
  MILLRACE_RETURN_IF_ERROR(Check(kind, example));
  return example;
}

absl::Status CleanExample(ExampleKind kind, const v1::CleanSpec& clean, Example* example) {
  std::vector<std::string*> strings = {&example->response, &example->rejected};
  for (Message& message : example->messages) strings.push_back(&message.content);
  for (std::string* text : strings) {
    MILLRACE_ASSIGN_OR_RETURN(*text, Clean(clean, *text));
  }
  return Check(kind, *example);
}

std::string Sha256OfExample(const Example& example) {
  Sha256 sum;
  const auto add = [&sum](absl::string_view part) { sum.Update(absl::StrCat(part.size(), "\n", part)); };
  for (const Message& message : example.messages) {
    add(message.role);
    add(message.content);
  }
  add("");
  add(example.response);
  add(example.rejected);
  add(example.answer);
  add(absl::StrCat(example.margin, example.tie, example.label));
  return sum.HexDigest();
}

absl::StatusOr<ExampleLines> ReadExamples(ExampleKind kind, const SourceFile& file, const ExampleSink& sink) {
  ExampleLines read;
  const auto line = [&](absl::string_view text, uint64_t number) -> absl::Status {
    ++read.lines;
    const std::string where = absl::StrCat(file.shown, ":", number);
    absl::StatusOr<Example> example = ParseExample(kind, text);
    if (example.ok()) return sink.example(*std::move(example), where);
    sink.skip(absl::StrCat(where, ": ", example.status().message()));
    if (read.fields.size() >= kMaxFields) return absl::OkStatus();
    if (const absl::StatusOr<Json> object = ParseObject(text); object.ok()) {
      for (const auto& [name, value] : object->items()) {
        if (read.fields.size() < kMaxFields &&
            std::find(read.fields.begin(), read.fields.end(), name) == read.fields.end())
          read.fields.push_back(name.substr(0, 64));
      }
    }
    return absl::OkStatus();
  };
  MILLRACE_RETURN_IF_ERROR(ReadLines(file, line, sink.skip));
  return read;
}

}  // namespace millrace::text
