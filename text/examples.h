// Reads lines of JSON as conversations, preferences and prompts.
//
// Layouts, told apart by their fields (C is a string, or a list of messages [{"role", "content"}, …], also
// [{"from": "human" | "gpt", "value"}, …]):
//   sft       {"messages": C} | {"conversations": C} | {"prompt": C, "response" | "completion" | "output": C}
//             | {"instruction", "input"?, "output" | "response"}                       (Alpaca; all strings)
//   pairs     {"prompt"?: C, "chosen": C, "rejected": C, "margin"?: number, "tie"?: bool}, where without a prompt
//   chosen
//             and rejected are whole dialogues: lists of messages, or strings of turns behind "\n\nHuman:" and
//             "\n\nAssistant:" (Anthropic HH); "score_chosen" and "score_rejected" (UltraFeedback) are a margin too
//   labelled  {"prompt": C, "completion" | "response": C, "label": bool}
//   prompts   {"prompt": C} | {"messages": C} | {"conversations": C}, "answer"?: string
// A string as a prompt is one message of the user; "system", a string, may stand beside prompt and instruction.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/chat_template.h"
#include "text/sources.h"

namespace millrace::text {

enum class ExampleKind : uint32_t { kSft = 0, kPairs = 1, kLabelled = 2, kPrompts = 3 };

// "sft", "pairs", "labelled", "prompts".
absl::string_view NameOf(ExampleKind kind);
// The fields it is told by, for messages.
absl::string_view LayoutsOf(ExampleKind kind);

struct Example {
  std::vector<Message> messages;  // sft: the whole conversation; else what comes before the response
  std::string response;           // pairs: the chosen one; labelled
  std::string rejected;           // pairs
  float margin = 0;               // pairs: by how much the chosen one is better, at least 0
  bool tie = false;               // pairs: neither is
  bool label = false;             // labelled: the response is wanted
  std::string answer;             // prompts: for a reward that a program gives
};

// INVALID_ARGUMENT saying what is wrong: no JSON, fields missing or of the wrong type, an empty prompt or response, a
// pair of equal responses, dialogues that differ before their last answer.
absl::StatusOr<Example> ParseExample(ExampleKind kind, absl::string_view line);

// Cleans every string as a document (text/clean.h). INVALID_ARGUMENT if the response or the prompt is empty then.
absl::Status CleanExample(ExampleKind kind, const v1::CleanSpec& clean, Example* example);

// SHA-256 over all of it, in hexadecimal digits: equal for equal examples, whatever their layouts.
std::string Sha256OfExample(const Example& example);

struct ExampleSink {
  // `where` is "a.jsonl:3".
  std::function<absl::Status(Example example, const std::string& where)> example;
  // A line left out, and why, with file and line.
  std::function<void(std::string why)> skip;
};

struct ExampleLines {
  uint64_t lines = 0;               // that are not blank
  std::vector<std::string> fields;  // of lines that were left out, the first few names
};

// Gives every example of a JSON Lines file to the sink, in order. The errors of ReadLines.
absl::StatusOr<ExampleLines> ReadExamples(ExampleKind kind, const SourceFile& file, const ExampleSink& sink);

}  // namespace millrace::text
