// millrace generate: continues a prompt.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_source.h"
#include "common/status.h"
#include "model/sampling.h"
#include "nlohmann/json.hpp"
#include "text/chat_template.h"
#include "text/readable_text.h"

namespace millrace::cli {
namespace {

// Whether the text could be written: a reader may have had enough.
bool Write(absl::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
}

}  // namespace

absl::Status RunGenerate(Arguments arguments) {
  std::string prompt, chat;
  int64_t max_tokens = 100, seed = 1;
  bool json = false;
  model::SamplingOptions sampling;
  ModelFlags model_flags;
  Flags flags("generate", "Continues a prompt with tokens drawn from the model. The same seed gives the same text.",
              "--model runs/quickstart/model --prompt \"In the beginning\" --temperature 0.7");
  model_flags.Declare(&flags);
  flags.Text("prompt", "TEXT", "what to continue; without it, the beginning of a document", &prompt);
  flags.Text("chat", "TEXT", "what a user says, to be answered as the model was taught to; instead of --prompt", &chat);
  flags.Integer("max-tokens", "N", "to draw at most", &max_tokens, 1, 1 << 20);
  flags.Number("temperature", "T", "below 1 the likely is likelier still; 0: always the likeliest token",
               &sampling.temperature, 0, 100);
  flags.Integer("top-k", "K", "draw only from the K likeliest tokens; 0: from all", &sampling.top_k, 0, 1 << 30);
  flags.Number("top-p", "P", "draw only from the likeliest tokens that together have probability P", &sampling.top_p,
               1e-6, 1);
  flags.Integer("seed", "S", "of the draws", &seed, 0, int64_t{1} << 53);
  flags.Switch("json", "prints an object with the text, its tokens and their log-probabilities", &json);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<OpenModel> open, model_flags.Open());
  model::LanguageModel& model = *open->language_model;
  std::vector<uint32_t> ids;
  std::optional<uint32_t> end;  // of an answer
  if (chat.empty()) {
    MILLRACE_ASSIGN_OR_RETURN(ids, model.EncodeDocument(prompt));
  } else {
    if (!prompt.empty()) return UsageError("--chat and --prompt: one of them");
    MILLRACE_RETURN_IF_ERROR(
        Annotate(open->chat_template.status(), "--chat needs a model that learnt from conversations"));
    const std::vector<text::Message> messages = {{"user", chat}};
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatText asked, open->chat_template->Prompt(messages));
    MILLRACE_ASSIGN_OR_RETURN(const text::ChatTokens asked_tokens, text::EncodeChat(asked, model.tokenizer()));
    MILLRACE_ASSIGN_OR_RETURN(end, text::EndOfTurn(*open->chat_template, model.tokenizer()));
    ids = asked_tokens.ids;
  }

  text::ReadableText readable;
  std::string text;
  std::vector<uint32_t> tokens;
  std::vector<float> log_probabilities;
  bool written = true;
  MILLRACE_RETURN_IF_ERROR(
      model.Generate(ids, sampling, max_tokens, static_cast<uint64_t>(seed), [&](uint32_t id, float log_probability) {
        if (tokens.empty() && !json) written = Write(text::ReadableTextOf(prompt));
        if (id == end) return false;
        tokens.push_back(id);
        log_probabilities.push_back(log_probability);
        const std::string piece = readable.Add(model.tokenizer().TokenBytes(id));
        text += piece;
        if (!json) written = written && Write(piece);
        return written;
      }));
  const std::string rest = readable.Finish();
  text += rest;
  if (!json) {
    if (tokens.empty()) Write(text::ReadableTextOf(prompt));
    Write(rest + "\n");
    return absl::OkStatus();
  }
  const nlohmann::ordered_json result = {
      {"prompt", text::ReadableTextOf(chat.empty() ? prompt : chat)},
      {"text", text},
      {"tokens", tokens},
      {"log_probabilities", log_probabilities},
      {"ended", static_cast<int64_t>(tokens.size()) < max_tokens ? (end.has_value() ? "end_of_turn" : "end_of_text") : "max_tokens"},
      {"seed", seed},
  };
  std::printf("%s\n", result.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace millrace::cli
