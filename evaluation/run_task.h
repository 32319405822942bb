// Asks a model the questions of a task and measures what it says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "evaluation/questions.h"
#include "evaluation/statistics.h"
#include "kernels/compute.h"
#include "model/language_model.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/evaluation.pb.h"
#include "text/chat_template.h"

namespace millrace::evaluation {

// What is asked; all outlive the call.
struct ModelInUse {
  model::LanguageModel* language_model = nullptr;
  const kernels::Compute* compute = nullptr;
  const text::ChatTemplate* chat_template = nullptr;  // null: it is no model for chats
};

struct Metric {
  std::string name;  // "acc", "pass@10"
  Measure measure = Measure::kShare;
  std::vector<Term> terms;  // one an example
};

struct TaskResult {
  std::vector<Metric> metrics;
  std::vector<nlohmann::ordered_json> records;  // one an example: what was asked, what came and what it counts
  // What is to be known of the examples, and of how many: "contexts cut", "ties in acc". None of 0.
  std::vector<std::pair<std::string, uint64_t>> notes;
};

struct RunOptions {
  std::string folder;           // of the tasks file
  bool allow_programs = false;  // pass_fail runs programs on what the model has generated
};

// PERMISSION_DENIED if the task runs programs and they are not allowed.
absl::Status CheckAllowed(const v1::TaskSpec& task, const RunOptions& options);

// A function of the task, the questions and the model, but for programs that look at the time or are stopped by it.
//
//   choice       acc: the first of the continuations with the largest Σ log p is the right one; acc_norm: with the
//                largest Σ log p a character; acc_bytes: a byte, of UTF-8; delimiter not counted
//   exact_match  the answer found in what is generated equals a right one
//   pass_fail    pass@k
//   perplexity   exp(-Σ log p / Σ words), the same by bytes, and -Σ log p / (ln 2 · Σ bytes)
//
// Context and continuation become tokens together, white space at the context's end as part of the continuation, behind
// the <|endoftext|> of a document; a token that begins in the context and ends in the continuation counts to the
// continuation. (lm-evaluation-harness counts tokens instead: the two differ where such a token is.) In a chat the
// continuation is what the assistant says, tokens as they would be sampled, without the one that ends its turn. Prompts
// that leave no room for max_tokens lose their beginning.
//
// INVALID_ARGUMENT, naming the example, for text that the tokenizer does not know, a chat with a model that is not for
// chats, and a text that nothing comes before if the tokenizer has no <|endoftext|>. The error of
// CheckAllowed.
absl::StatusOr<TaskResult> RunTask(const v1::TaskSpec& task, absl::Span<const Question> questions,
                                   const ModelInUse& model, const RunOptions& options);

}  // namespace millrace::evaluation
