#include "text/chat_template.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace millrace::text {
namespace {

void Add(absl::string_view text, bool own, bool scored, ChatText* chat) {
  absl::StrAppend(&chat->text, text);
  chat->own.resize(chat->text.size(), own);
  chat->scored.resize(chat->text.size(), scored);
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Load(const v1::ChatSpec& spec, const Tokenizer& /*tokenizer*/,
                                                const std::string& /*base_dir*/) {
  ChatTemplate chat_template;
  if (!spec.template_().empty() && spec.template_() != "plain")
    return absl::InvalidArgumentError(absl::StrCat("chat.template is '", spec.template_(), "'; known: plain"));
  chat_template.system_ = spec.system();
  chat_template.identity_ = absl::StrCat("plain\n", spec.system());
  return chat_template;
}

ChatText ChatTemplate::Plain(absl::Span<const Message> messages, bool prompt) const {
  ChatText chat;
  if (!system_.empty() && (messages.empty() || messages[0].role != "system")) {
    Add(system_, true, false, &chat);
    Add("\n\n", false, false, &chat);
  }
  for (const Message& message : messages) {
    const bool assistant = message.role == "assistant";
    if (message.role == "user") Add("User: ", false, false, &chat);
    if (assistant) Add("Assistant:", false, false, &chat);
    if (assistant) Add(" ", false, true, &chat);
    Add(message.content, true, assistant, &chat);
    if (assistant) Add(kEndOfText, false, true, &chat);
    Add(message.role == "system" ? "\n\n" : "\n", false, false, &chat);
  }
  if (prompt) Add("Assistant:", false, false, &chat);
  return chat;
}

absl::StatusOr<ChatText> ChatTemplate::Conversation(absl::Span<const Message> messages) const {
  return Plain(messages, false);
}

absl::StatusOr<ChatText> ChatTemplate::Prompt(absl::Span<const Message> messages) const {
  return Plain(messages, true);
}

absl::StatusOr<ChatTokens> EncodeChat(const ChatText& chat, const Tokenizer& tokenizer) {
  ChatTokens tokens;
  for (size_t begin = 0, end = 0; begin < chat.text.size(); begin = end) {
    const bool scored = chat.scored[begin] != 0;
    while (end < chat.text.size() && (chat.scored[end] != 0) == scored) ++end;
    const size_t first = tokens.ids.size();
    MILLRACE_RETURN_IF_ERROR(tokenizer.EncodeMarked(absl::string_view(chat.text).substr(begin, end - begin),
                                                    absl::MakeConstSpan(chat.own).subspan(begin, end - begin),
                                                    &tokens.ids));
    tokens.scored.resize(tokens.ids.size(), scored);
    if (!scored) continue;
    size_t last = tokens.ids.size();
    while (last > first && !tokenizer.IsSpecial(tokens.ids[last - 1]) &&
           absl::StripAsciiWhitespace(tokenizer.TokenBytes(tokens.ids[last - 1])).empty()) {
      --last;
    }
    if (last == first || !tokenizer.IsSpecial(tokens.ids[last - 1])) continue;
    for (size_t i = last; i < tokens.ids.size(); ++i) tokens.scored[i] = 0;
  }
  return tokens;
}

absl::StatusOr<uint32_t> EndOfTurn(const ChatTemplate& chat_template, const Tokenizer& tokenizer) {
  // The template's own text alone: the tokenizer may lack the characters of any message that could stand here.
  const std::vector<Message> probe = {{"user", "1"}, {"assistant", "1"}};
  MILLRACE_ASSIGN_OR_RETURN(const ChatText chat, chat_template.Conversation(probe));
  size_t end = chat.text.size();
  while (end > 0 && chat.scored[end - 1] == 0) --end;
  size_t begin = end;
  while (begin > 0 && chat.scored[begin - 1] != 0 && chat.own[begin - 1] == 0) --begin;
  const absl::string_view mark = absl::StripAsciiWhitespace(absl::string_view(chat.text).substr(begin, end - begin));
  if (const std::optional<uint32_t> id = tokenizer.AddedId(mark); id && tokenizer.IsSpecial(*id)) return *id;
  return absl::InvalidArgumentError(
      mark.empty()
          ? "the chat template puts nothing behind the assistant's messages, so that a model would never learn to "
            "stop; "
            "let it put eos_token there"
          : absl::StrCat("the chat template ends the assistant's messages with '", mark,
                         "', which the tokenizer does not have as a special token, so that a model would not learn to "
                         "stop; add it to tokenizer.special_tokens"));
}

}  // namespace millrace::text
