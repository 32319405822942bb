// Turns messages into the text that a model reads, and tells what in it the assistant said.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/millrace/v1/job.pb.h"
#include "text/tokenizer.h"

namespace millrace::text {

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
class ChatTemplate {
 public:
  // INVALID_ARGUMENT or NOT_FOUND if spec.template names no template. Relative paths are relative to `base_dir`.
  static absl::StatusOr<ChatTemplate> Load(const v1::ChatSpec& spec, const Tokenizer& tokenizer,
                                           const std::string& base_dir);

  // The whole conversation. INVALID_ARGUMENT, naming the template, if the assistant says nothing in it.
  absl::StatusOr<ChatText> Conversation(absl::Span<const Message> messages) const;
  // The conversation up to where the assistant answers next.
  absl::StatusOr<ChatText> Prompt(absl::Span<const Message> messages) const;

  // All that the results are a function of, besides the messages.
  const std::string& identity() const { return identity_; }

 private:
  ChatTemplate() = default;
  ChatText Plain(absl::Span<const Message> messages, bool prompt) const;

  std::string system_;
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
