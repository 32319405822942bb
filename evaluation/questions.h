// Makes what a model is asked out of a task and its data: templates filled in, few-shot examples before them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/evaluation.pb.h"
#include "text/chat_template.h"
#include "text/jinja.h"

namespace millrace::evaluation {

// One line of a task's data.
struct Example {
  nlohmann::ordered_json fields;  // an object
  std::string where;              // "weather.jsonl:3"
};

// What one example asks of any model.
//
// Not a chat: `context` is description, few-shot examples and prompt, with the separator between them; an example is
// its prompt, the target delimiter and its answer. Behind a context that is not empty a continuation begins with
// `delimiter`.
// In a chat: `messages`, of which the last is the user's; a few-shot example is one of the user and one of the
// assistant.
struct Question {
  std::string where;
  std::string context;
  std::string delimiter;
  std::vector<text::Message> messages;
  std::vector<std::string> continuations;  // choice: the choices; perplexity: the target
  size_t right = 0;                        // choice: the index of the right one
  std::vector<std::string> answers;        // exact_match: those that are right
  nlohmann::ordered_json fields;           // pass_fail: for the templates of program and source
};

// Reads the data, relative to `folder`, and fills in the templates. A function of the task and the files. Errors name
// file and line, and the task's field, for lines that are no objects of JSON and for templates that use fields that are
// not there; an example that cannot be asked is never left out.
//
// drawn: few-shot examples are drawn without replacement, for each example by the seed and its place in the data; out
// of the data itself never the example that is asked. first: the first ones in order, likewise.
absl::StatusOr<std::vector<Question>> MakeQuestions(const v1::TaskSpec& task, const std::string& folder);

// A template with the fields of an example; `more` are variables too. INVALID_ARGUMENT with the line of the template.
absl::StatusOr<std::string> RenderTemplate(const text::JinjaTemplate& parsed, const nlohmann::ordered_json& fields,
                                           absl::Span<const std::pair<std::string, std::string>> more = {});

// `count` different ones of [0, n) without `except` (n: none), in the order in which they are drawn: a function of the
// key and `index`. Requires count of them.
std::vector<size_t> DrawExamples(uint64_t seed, uint64_t index, size_t n, size_t except, size_t count);

}  // namespace millrace::evaluation
