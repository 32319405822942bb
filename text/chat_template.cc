#include "text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/named_templates.h"

namespace millrace::text {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr int kMaxConfigDepth = 64;

struct Source {
  std::string jinja;
  std::optional<std::string> bos_token, eos_token;
};

// A token is a string, or an added token with its content.
std::optional<std::string> TokenOf(const Json& config, const char* name) {
  const auto it = config.find(name);
  if (it == config.end()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string())
    return (*it)["content"].get<std::string>();
  return std::nullopt;
}

// Reads tokens and, if `source` has none yet, the template of a tokenizer_config.json.
absl::Status ReadConfig(const std::string& path, Source* source) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxConfigDepth; };
  const Json config = Json::parse(text.begin(), text.end(), bounded, /*allow_exceptions=*/false);
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  source->bos_token = TokenOf(config, "bos_token");
  source->eos_token = TokenOf(config, "eos_token");
  if (!source->jinja.empty()) return absl::OkStatus();
  Json found = config.value("chat_template", Json());
  // Several templates: the one for chats is named "default".
  if (found.is_array()) {
    Json chosen;
    for (const Json& one : found) {
      if (one.is_object() && one.value("name", Json()) == Json("default")) chosen = one.value("template", Json());
    }
    found = std::move(chosen);
  }
  if (!found.is_string() || found.get_ref<const std::string&>().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": there is no chat_template; name one of ", TemplateNames(),
                                                   ", or a file with a Jinja template"));
  }
  source->jinja = found.get<std::string>();
  return absl::OkStatus();
}

absl::StatusOr<Source> ReadSource(const std::string& name, const std::string& base_dir) {
  Source source;
  if (const auto named = NamedTemplate(name)) {
    source.jinja = std::string(*named);
    return source;
  }
  const fs::path given(name);
  const std::string path = given.is_absolute() || base_dir.empty() ? name : (fs::path(base_dir) / given).string();
  std::error_code error;
  if (!fs::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("chat.template is '", name, "', which is neither one of ", TemplateNames(),
                                            " nor a file or a folder"));
  }
  if (absl::EndsWith(path, ".json")) {
    MILLRACE_RETURN_IF_ERROR(ReadConfig(path, &source));
    return source;
  }
  const bool folder = fs::is_directory(path, error);
  const std::string file = folder ? absl::StrCat(path, "/", kChatTemplateFile) : path;
  if (!folder || fs::exists(file, error)) {
    MILLRACE_ASSIGN_OR_RETURN(source.jinja, ReadFile(file, kMaxConfigBytes));
    if (source.jinja.empty()) return absl::InvalidArgumentError(absl::StrCat(file, " is empty"));
  }
  const std::string config = (fs::path(file).parent_path() / "tokenizer_config.json").string();
  if (source.jinja.empty() || fs::exists(config, error)) MILLRACE_RETURN_IF_ERROR(ReadConfig(config, &source));
  return source;
}

std::string FirstOf(const Tokenizer& tokenizer, absl::string_view token) {
  return std::string(tokenizer.AddedId(token) ? token : kEndOfText);
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Load(const v1::ChatSpec& spec, const Tokenizer& tokenizer,
                                                const std::string& base_dir) {
  v1::ChatSpec named = spec;
  if (named.template_().empty()) named.set_template_("plain");
  MILLRACE_ASSIGN_OR_RETURN(Source source, ReadSource(named.template_(), base_dir));
  absl::StatusOr<JinjaTemplate> parsed = JinjaTemplate::Parse(source.jinja);
  if (!parsed.ok()) return Annotate(parsed.status(), absl::StrCat("the chat template ", named.template_()));
  ChatTemplate chat_template(*std::move(parsed), named);
  chat_template.source_ = source.jinja;
  chat_template.bos_token_ = source.bos_token.value_or(FirstOf(tokenizer, "<s>"));
  chat_template.eos_token_ = source.eos_token.value_or(FirstOf(tokenizer, "</s>"));
  for (const std::string& part : {source.jinja, spec.system(), chat_template.bos_token_, chat_template.eos_token_})
    absl::StrAppend(&chat_template.identity_, part.size(), "\n", part);
  return chat_template;
}

absl::StatusOr<JinjaOutput> ChatTemplate::Render(absl::Span<const Message> messages, bool prompt) const {
  JinjaTemplate::Variables variables;
  variables.add_generation_prompt = prompt;
  variables.strings = {{"bos_token", bos_token_}, {"eos_token", eos_token_}};
  const auto add = [&](const std::string& role, const std::string& content) {
    variables.messages.push_back({{"role", MarkedText::Of(role, false)}, {"content", MarkedText::Of(content, true)}});
  };
  if (!spec_.system().empty() && (messages.empty() || messages[0].role != "system")) add("system", spec_.system());
  for (const Message& message : messages) add(message.role, message.content);
  absl::StatusOr<JinjaOutput> output = jinja_.Render(variables);
  if (!output.ok()) return Annotate(output.status(), absl::StrCat("the chat template ", spec_.template_()));
  return output;
}

absl::StatusOr<ChatText> ChatTemplate::Marked(absl::Span<const Message> messages, bool prompt) const {
  MILLRACE_ASSIGN_OR_RETURN(JinjaOutput whole, Render(messages, prompt));
  ChatText chat = {std::move(whole.rendered.text), std::move(whole.rendered.own), std::move(whole.generated)};
  if (jinja_.has_generation()) return chat;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    MILLRACE_ASSIGN_OR_RETURN(const JinjaOutput before, Render(messages.first(i), true));
    MILLRACE_ASSIGN_OR_RETURN(const JinjaOutput after, Render(messages.first(i + 1), false));
    const std::string& begin = before.rendered.text;
    const std::string& end = after.rendered.text;
    if (!absl::StartsWith(end, begin) || !absl::StartsWith(chat.text, end)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the chat template ", spec_.template_(), " renders message ", i + 1,
                       " of a longer conversation otherwise than of a shorter one, so that what the assistant says "
                       "cannot be told; put it inside {% generation %} … {% endgeneration %}"));
    }
    std::fill(chat.scored.begin() + static_cast<ptrdiff_t>(begin.size()),
              chat.scored.begin() + static_cast<ptrdiff_t>(end.size()), 1);
  }
  return chat;
}

absl::StatusOr<ChatText> ChatTemplate::Conversation(absl::Span<const Message> messages) const {
  MILLRACE_ASSIGN_OR_RETURN(ChatText chat, Marked(messages, false));
  for (size_t i = 0; i < chat.text.size(); ++i) {
    if (chat.own[i] != 0 && chat.scored[i] != 0) return chat;
  }
  return absl::InvalidArgumentError(absl::StrCat("the chat template ", spec_.template_(),
                                                 " renders nothing of what the assistant says, so that there is "
                                                 "nothing to learn"));
}

absl::StatusOr<ChatText> ChatTemplate::Prompt(absl::Span<const Message> messages) const {
  return Marked(messages, true);
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
