// Turns messages into the text that a model reads, and tells what in it the assistant said.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

namespace millrace::text {

// Beside a model that learnt from conversations.
inline constexpr char kChatTemplateFile[] = "chat_template.jinja";

struct Message {
  std::string role;  // system, user or assistant
  std::string content;
  friend bool operator==(const Message&, const Message&) = default;
};

// What the template made of a conversation.
struct ChatText {
  std::string text;
  // [text.size()] each: 1 for a byte that a message said, which never makes a special token …
  std::vector<uint8_t> own;
  // … and for one that the assistant is to learn: its messages and the mark that ends them.
  std::vector<uint8_t> scored;
};

// Constant after Load: any thread.
//
// What the assistant says is what a template puts inside {% generation %}. Of a template without such marks it is what
// follows the rendering of the messages before, with add_generation_prompt, up to the end of the rendering with the
// message; both must be beginnings of the whole.
class ChatTemplate {
 public:
  // By spec.template: a name (text/named_templates.h), a file with a Jinja template, a tokenizer_config.json, or a
  // folder with chat_template.jinja or tokenizer_config.json. Relative paths are relative to `base_dir`. bos_token and
  // eos_token are those of the folder's tokenizer_config.json; without one the first of <s> and <|endoftext|>, and of
  // </s> and <|endoftext|>, that the tokenizer has. NOT_FOUND or INVALID_ARGUMENT, naming file and line.
  static absl::StatusOr<ChatTemplate> Load(const v1::ChatSpec& spec, const Tokenizer& tokenizer,
                                           const std::string& base_dir);

  // The whole conversation, spec.system before it if it has no system message. Requires UTF-8. INVALID_ARGUMENT, naming
  // the template, if it raises an error, if nothing of what the assistant says is rendered, or if a template without
  // marks changes what it rendered before.
  absl::StatusOr<ChatText> Conversation(absl::Span<const Message> messages) const;
  // The conversation up to where the assistant answers next. Encoded, it is how Conversation begins.
  absl::StatusOr<ChatText> Prompt(absl::Span<const Message> messages) const;

  // In Jinja: what chat_template.jinja beside a model holds. spec.system is no part of it.
  const std::string& source() const { return source_; }
  // All that the results are a function of, besides the messages.
  const std::string& identity() const { return identity_; }

 private:
  ChatTemplate(JinjaTemplate parsed, const v1::ChatSpec& spec) : jinja_(std::move(parsed)), spec_(spec) {}
  absl::StatusOr<JinjaOutput> Render(absl::Span<const Message> messages, bool prompt) const;
  absl::StatusOr<ChatText> Marked(absl::Span<const Message> messages, bool prompt) const;

  JinjaTemplate jinja_;
  v1::ChatSpec spec_;
  std::string source_;
  std::string bos_token_;
  std::string eos_token_;
  std::string identity_;
};

struct ChatTokens {
  std::vector<uint32_t> ids;
  std::vector<uint8_t> scored;  // [ids.size()]
};

// Special tokens are recognised in what the template says, never in what the messages say. A scored run of bytes
// becomes tokens of its own, as it would be sampled; white space behind the special token that ends it is not scored.
// The errors of Tokenizer::EncodeOrdinary.
absl::StatusOr<ChatTokens> EncodeChat(const ChatText& chat, const Tokenizer& tokenizer);

// The special token with which the assistant's turn ends. INVALID_ARGUMENT, saying what is missing, if it ends with
// none that the tokenizer has: a model that learns from such text never stops.
absl::StatusOr<uint32_t> EndOfTurn(const ChatTemplate& chat_template, const Tokenizer& tokenizer);

}  // namespace millrace::text
