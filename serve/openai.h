// Reads requests and writes replies of OpenAI's HTTP API (docs/serving.md says which parts of it).
//
// What a request asks and this server does not do is refused, naming the parameter, unless it would change nothing. A
// parameter of null is absent. Errors carry the parameter and a code; ErrorJson gives them as clients expect.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "serve/engine.h"
#include "text/chat_template.h"
#include "text/readable_text.h"
#include "text/tokenizer.h"

namespace millrace::serve {

// Bounds of a request.
inline constexpr size_t kMaxBodyBytes = 8 << 20;
inline constexpr int64_t kMaxChoices = 128;  // prompts × n
inline constexpr size_t kMaxInputs = 2048;   // texts to embed
inline constexpr int64_t kMaxLikeliest = 20;
inline constexpr size_t kMaxStops = 16;
inline constexpr size_t kMaxStopBytes = 1024;

// A text, or token ids.
using Input = std::variant<std::string, std::vector<uint32_t>>;

// POST /v1/completions and /v1/chat/completions.
struct GenerateRequest {
  bool chat = false;
  std::string model;
  std::vector<Input> prompts;           // of completions; at least one
  std::vector<text::Message> messages;  // of a chat; at least one
  // All but the prompt, max_tokens, stop_tokens and the seed. score_prompt: its log-probabilities are to be echoed.
  Task task;
  std::optional<int64_t> max_tokens;
  std::optional<uint64_t> seed;
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
};

// POST /v1/embeddings.
struct EmbeddingsRequest {
  std::string model;
  std::vector<Input> inputs;  // at least one
  bool base64 = false;        // of little-endian f32
  std::optional<int64_t> dimensions;
};

// INVALID_ARGUMENT naming the parameter, what it is and what would be right.
absl::StatusOr<GenerateRequest> ParseCompletion(absl::string_view body);
absl::StatusOr<GenerateRequest> ParseChat(absl::string_view body);
absl::StatusOr<EmbeddingsRequest> ParseEmbeddings(absl::string_view body);

// An error about a parameter; `code` is for programs and may be empty.
absl::Status ParameterError(absl::string_view parameter, absl::string_view message, absl::string_view code = "");

// The HTTP status of an error, and {"error": {message, type, param, code}}.
int HttpStatusOf(const absl::Status& status);
std::string ErrorJson(int http_status, const absl::Status& status);

struct Usage {
  int64_t prompt_tokens = 0;  // each prompt counts once
  int64_t drawn_tokens = 0;
};

// One of the answers, or a part of it.
struct Choice {
  int64_t index = 0;
  std::string text;
  std::vector<Token> tokens;
  size_t silent = 0;  // tokens at the front that are no part of the text
  Ending ending = Ending::kNone;
};

// What all parts of one reply share, and how they are written.
class ReplyWriter {
 public:
  struct Head {
    bool chat = false;
    std::string id;
    int64_t created = 0;  // Unix seconds
    std::string model;
    uint64_t seed = 0;  // as used: repeats the answer
    bool log_probabilities = false;
    bool include_usage = false;
  };
  // `tokenizer` outlives this.
  ReplyWriter(Head head, const text::Tokenizer* tokenizer) : head_(std::move(head)), tokenizer_(tokenizer) {}

  // A whole reply.
  std::string Whole(absl::Span<const Choice> choices, const Usage& usage);

  // Server-sent events: of a choice that begins (nothing but for chats), of a part of one, and of the end.
  std::string BeginEvent(int64_t index) const;
  std::string PartEvent(const Choice& part);
  std::string EndEvents(const Usage& usage) const;
  static std::string ErrorEvent(const absl::Status& status);

 private:
  struct Position {
    text::ReadableText readable;
    uint64_t characters = 0;
  };

  const Head head_;
  const text::Tokenizer* const tokenizer_;
  std::map<int64_t, Position> positions_;  // by choice: where its next token begins

  friend class ReplyJson;
};

std::string EmbeddingsJson(const std::string& model, absl::Span<const std::vector<float>> embeddings, bool base64,
                           int64_t prompt_tokens);

}  // namespace millrace::serve
