#include "serve/openai.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/unicode.h"

namespace millrace::serve {
namespace {

using Parsed = nlohmann::json;  // finds names in a tree: objects may have many
using Json = nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little, "embeddings are sent as they lie in memory");

constexpr int kMaxDepth = 64;
constexpr absl::string_view kParameterUrl = "millrace/parameter";
constexpr absl::string_view kCodeUrl = "millrace/code";

std::string PayloadOf(const absl::Status& status, absl::string_view url) {
  const absl::optional<absl::Cord> payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::StatusOr<Parsed> ParseObject(absl::string_view body) {
  const auto bounded = [](int depth, Parsed::parse_event_t, Parsed&) { return depth <= kMaxDepth; };
  Parsed object = Parsed::parse(body.begin(), body.end(), bounded, /*allow_exceptions=*/false);
  if (object.is_discarded()) return absl::InvalidArgumentError("the body is not JSON");
  if (!object.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return object;
}

// Reads the parameters of a request one by one and then refuses those that are left.
class Parameters {
 public:
  explicit Parameters(const Parsed& object) : object_(object) {}

  // Null if it is absent or null.
  const Parsed* Find(const char* name) {
    known_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  absl::StatusOr<std::optional<std::string>> Text(const char* name) {
    const Parsed* const value = Find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) return ParameterError(name, "must be a string");
    return value->get<std::string>();
  }
  absl::StatusOr<bool> Switch(const char* name) {
    const Parsed* const value = Find(name);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return ParameterError(name, "must be true or false");
    return value->get<bool>();
  }
  absl::StatusOr<std::optional<int64_t>> Integer(const char* name, int64_t min, int64_t max) {
    const Parsed* const value = Find(name);
    if (value == nullptr) return std::nullopt;
    const bool whole = value->is_number_unsigned()
                           ? value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
                           : value->is_number_integer();
    if (!whole || value->get<int64_t>() < min || value->get<int64_t>() > max) {
      return ParameterError(name, absl::StrCat("must be a whole number from ", min, " to ", max));
    }
    return value->get<int64_t>();
  }
  absl::StatusOr<double> Number(const char* name, double absent, double min, double max) {
    const Parsed* const value = Find(name);
    if (value == nullptr) return absent;
    if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
      return ParameterError(name, absl::StrCat("must be a number from ", min, " to ", max));
    }
    return value->get<double>();
  }

  // Parameters that change nothing.
  void Ignore(std::initializer_list<const char*> names) { known_.insert(names.begin(), names.end()); }
  // A parameter that is not supported: it may have one of `neutral`, values with which it changes nothing.
  absl::Status Unsupported(const char* name, std::initializer_list<Parsed> neutral) {
    const Parsed* const value = Find(name);
    if (value == nullptr || std::find(neutral.begin(), neutral.end(), *value) != neutral.end()) {
      return absl::OkStatus();
    }
    return ParameterError(name, "is not supported", "unsupported_parameter");
  }
  absl::Status RefuseOthers() const {
    for (const auto& [name, value] : object_.items()) {
      if (known_.contains(name) || value.is_null()) continue;
      return ParameterError(name.substr(0, 64), "is not a parameter of this request", "unknown_parameter");
    }
    return absl::OkStatus();
  }

 private:
  const Parsed& object_;
  std::set<std::string> known_;
};

absl::StatusOr<std::vector<uint32_t>> ReadIds(const char* name, const Parsed& list) {
  std::vector<uint32_t> ids;
  ids.reserve(list.size());
  for (const Parsed& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
      return ParameterError(name, "must hold token ids: whole numbers from 0");
    }
    ids.push_back(id.get<uint32_t>());
  }
  return ids;
}

// A string, a list of strings, a list of token ids or a list of such lists.
absl::StatusOr<std::vector<Input>> ReadInputs(const char* name, const Parsed& value, size_t most) {
  constexpr char kForms[] = "must be a string, a list of strings, a list of token ids or a list of lists of token ids";
  std::vector<Input> inputs;
  if (value.is_string()) {
    inputs.emplace_back(value.get<std::string>());
    return inputs;
  }
  if (!value.is_array()) return ParameterError(name, kForms);
  if (value.empty()) return ParameterError(name, "must not be empty");
  if (value[0].is_number()) {
    MILLRACE_ASSIGN_OR_RETURN(std::vector<uint32_t> ids, ReadIds(name, value));
    inputs.emplace_back(std::move(ids));
    return inputs;
  }
  if (value.size() > most) {
    return ParameterError(name, absl::StrCat("has ", value.size(), " entries; at most ", most));
  }
  for (const Parsed& entry : value) {
    if (entry.type() != value[0].type() || (!entry.is_string() && !entry.is_array()))
      return ParameterError(name, kForms);
    if (entry.is_string()) {
      inputs.emplace_back(entry.get<std::string>());
    } else {
      MILLRACE_ASSIGN_OR_RETURN(std::vector<uint32_t> ids, ReadIds(name, entry));
      inputs.emplace_back(std::move(ids));
    }
  }
  return inputs;
}

absl::StatusOr<std::vector<std::string>> ReadStops(Parameters* parameters) {
  std::vector<std::string> stops;
  const Parsed* const value = parameters->Find("stop");
  if (value == nullptr) return stops;
  if (value->is_string()) {
    stops.push_back(value->get<std::string>());
  } else if (value->is_array() && value->size() <= kMaxStops) {
    for (const Parsed& stop : *value) {
      if (!stop.is_string()) return ParameterError("stop", "must be a string or a list of strings");
      stops.push_back(stop.get<std::string>());
    }
  } else {
    return ParameterError("stop", absl::StrCat("must be a string or a list of at most ", kMaxStops, " strings"));
  }
  for (const std::string& stop : stops) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return ParameterError("stop", absl::StrCat("must hold strings of 1 to ", kMaxStopBytes, " bytes"));
    }
  }
  return stops;
}

absl::StatusOr<std::string> ReadContent(const Parsed& message) {
  constexpr char kForms[] = "must hold messages whose content is a string or a list of parts of type text";
  const auto content = message.find("content");
  if (content == message.end()) return ParameterError("messages", kForms);
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) return ParameterError("messages", kForms);
  std::string text;
  for (const Parsed& part : *content) {
    if (!part.is_object() || part.value("type", Parsed()) != "text" || !part.value("text", Parsed()).is_string()) {
      return ParameterError("messages", kForms);
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

absl::StatusOr<std::vector<text::Message>> ReadMessages(Parameters* parameters) {
  const Parsed* const value = parameters->Find("messages");
  if (value == nullptr || !value->is_array() || value->empty()) {
    return ParameterError("messages", "must be a list of messages that is not empty");
  }
  std::vector<text::Message> messages;
  for (const Parsed& entry : *value) {
    if (!entry.is_object()) return ParameterError("messages", "must hold objects with role and content");
    const Parsed role = entry.value("role", Parsed());
    for (const auto& [name, field] : entry.items()) {
      if (name == "role" || name == "content" || name == "name" || field.is_null() || field == Parsed::array())
        continue;
      return ParameterError("messages",
                            absl::StrCat("has a message with ", name.substr(0, 64), ", which is not supported"),
                            "unsupported_parameter");
    }
    text::Message& message = messages.emplace_back();
    if (role == "developer" || role == "system") {
      message.role = "system";
    } else if (role == "user" || role == "assistant") {
      message.role = role.get<std::string>();
    } else {
      return ParameterError("messages", "must hold messages whose role is system, developer, user or assistant");
    }
    MILLRACE_ASSIGN_OR_RETURN(message.content, ReadContent(entry));
  }
  return messages;
}

absl::Status ReadStream(Parameters* parameters, GenerateRequest* request) {
  MILLRACE_ASSIGN_OR_RETURN(request->stream, parameters->Switch("stream"));
  const Parsed* const options = parameters->Find("stream_options");
  if (options == nullptr) return absl::OkStatus();
  if (!options->is_object()) return ParameterError("stream_options", "must be an object");
  if (!request->stream) return ParameterError("stream_options", "goes with stream: true alone");
  Parameters of_stream(*options);
  of_stream.Ignore({"include_obfuscation"});
  const absl::StatusOr<bool> include = of_stream.Switch("include_usage");
  if (!include.ok()) return ParameterError("stream_options", "has an include_usage that is neither true nor false");
  request->include_usage = *include;
  if (!of_stream.RefuseOthers().ok()) return ParameterError("stream_options", "may hold include_usage alone");
  return absl::OkStatus();
}

// What completions and chats share.
absl::Status ReadShared(Parameters* parameters, GenerateRequest* request) {
  Task& task = request->task;
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<std::string> model, parameters->Text("model"));
  if (!model.has_value()) return ParameterError("model", "is missing");
  request->model = *model;
  MILLRACE_ASSIGN_OR_RETURN(task.sampling.temperature, parameters->Number("temperature", 1, 0, 100));
  MILLRACE_ASSIGN_OR_RETURN(task.sampling.top_p, parameters->Number("top_p", 1, 1e-6, 1));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> top_k, parameters->Integer("top_k", 0, 1 << 30));
  task.sampling.top_k = top_k.value_or(0);
  MILLRACE_ASSIGN_OR_RETURN(task.frequency_penalty, parameters->Number("frequency_penalty", 0, -2, 2));
  MILLRACE_ASSIGN_OR_RETURN(task.presence_penalty, parameters->Number("presence_penalty", 0, -2, 2));
  MILLRACE_ASSIGN_OR_RETURN(
      const std::optional<int64_t> seed,
      parameters->Integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()));
  if (seed.has_value()) request->seed = static_cast<uint64_t>(*seed);
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> n, parameters->Integer("n", 1, kMaxChoices));
  task.samples = n.value_or(1);
  MILLRACE_ASSIGN_OR_RETURN(task.stop_strings, ReadStops(parameters));
  MILLRACE_RETURN_IF_ERROR(ReadStream(parameters, request));
  MILLRACE_RETURN_IF_ERROR(parameters->Unsupported("logit_bias", {Parsed::object()}));
  parameters->Ignore({"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"});
  return absl::OkStatus();
}

absl::string_view FinishReason(Ending ending) { return ending == Ending::kStop ? "stop" : "length"; }

// Text of a token; of bytes that are no text, "bytes:\xf0\x9f", as OpenAI has it.
std::string TokenName(absl::string_view bytes) {
  if (!text::FirstInvalidUtf8(bytes).has_value()) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes) absl::StrAppendFormat(&name, "\\x%02x", static_cast<uint8_t>(byte));
  return name;
}

// All text is well formed where it comes from; a byte that is not would be our mistake, not the client's.
std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string Event(const Json& json) { return absl::StrCat("data: ", Dump(json), "\n\n"); }

Json UsageJson(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.drawn_tokens},
          {"total_tokens", usage.prompt_tokens + usage.drawn_tokens}};
}

Json OptionalNumber(const std::optional<float>& value) { return value.has_value() ? Json(*value) : Json(); }

}  // namespace

// ---- requests ----

absl::Status ParameterError(absl::string_view parameter, absl::string_view message, absl::string_view code) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat("'", parameter, "' ", message));
  status.SetPayload(kParameterUrl, absl::Cord(parameter));
  if (!code.empty()) status.SetPayload(kCodeUrl, absl::Cord(code));
  return status;
}

absl::StatusOr<GenerateRequest> ParseCompletion(absl::string_view body) {
  MILLRACE_ASSIGN_OR_RETURN(const Parsed object, ParseObject(body));
  Parameters parameters(object);
  GenerateRequest request;
  MILLRACE_RETURN_IF_ERROR(ReadShared(&parameters, &request));
  const Parsed* const prompt = parameters.Find("prompt");
  if (prompt == nullptr) return ParameterError("prompt", "is missing");
  MILLRACE_ASSIGN_OR_RETURN(request.prompts, ReadInputs("prompt", *prompt, kMaxChoices));
  if (static_cast<int64_t>(request.prompts.size()) * request.task.samples > kMaxChoices) {
    return ParameterError("n", absl::StrCat("makes ", request.prompts.size(), " × ", request.task.samples,
                                            " answers; at most ", kMaxChoices));
  }
  MILLRACE_ASSIGN_OR_RETURN(request.max_tokens, parameters.Integer("max_tokens", 0, 1 << 30));
  if (!request.max_tokens.has_value()) request.max_tokens = 16;
  MILLRACE_ASSIGN_OR_RETURN(request.echo, parameters.Switch("echo"));
  MILLRACE_ASSIGN_OR_RETURN(request.task.likeliest, parameters.Integer("logprobs", 0, kMaxLikeliest));
  request.task.score_prompt = request.echo && request.task.likeliest.has_value();
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("suffix", {""}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("best_of", {request.task.samples}));
  MILLRACE_RETURN_IF_ERROR(parameters.RefuseOthers());
  return request;
}

absl::StatusOr<GenerateRequest> ParseChat(absl::string_view body) {
  MILLRACE_ASSIGN_OR_RETURN(const Parsed object, ParseObject(body));
  Parameters parameters(object);
  GenerateRequest request;
  request.chat = true;
  MILLRACE_RETURN_IF_ERROR(ReadShared(&parameters, &request));
  MILLRACE_ASSIGN_OR_RETURN(request.messages, ReadMessages(&parameters));
  MILLRACE_ASSIGN_OR_RETURN(request.max_tokens, parameters.Integer("max_completion_tokens", 1, 1 << 30));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> older, parameters.Integer("max_tokens", 1, 1 << 30));
  if (request.max_tokens.has_value() && older.has_value() && *request.max_tokens != *older) {
    return ParameterError("max_tokens", "is not what max_completion_tokens, its newer name, is");
  }
  if (!request.max_tokens.has_value()) request.max_tokens = older;
  MILLRACE_ASSIGN_OR_RETURN(const bool log_probabilities, parameters.Switch("logprobs"));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> top, parameters.Integer("top_logprobs", 0, kMaxLikeliest));
  if (top.has_value() && !log_probabilities) return ParameterError("top_logprobs", "goes with logprobs: true alone");
  if (log_probabilities) request.task.likeliest = top.value_or(0);
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("tools", {Parsed::array()}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("tool_choice", {"none", "auto"}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("functions", {Parsed::array()}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("function_call", {"none", "auto"}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("response_format", {Parsed{{"type", "text"}}}));
  MILLRACE_RETURN_IF_ERROR(parameters.Unsupported("modalities", {Parsed::array({"text"})}));
  parameters.Ignore({"store", "parallel_tool_calls"});
  MILLRACE_RETURN_IF_ERROR(parameters.RefuseOthers());
  return request;
}

absl::StatusOr<EmbeddingsRequest> ParseEmbeddings(absl::string_view body) {
  MILLRACE_ASSIGN_OR_RETURN(const Parsed object, ParseObject(body));
  Parameters parameters(object);
  EmbeddingsRequest request;
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<std::string> model, parameters.Text("model"));
  if (!model.has_value()) return ParameterError("model", "is missing");
  request.model = *model;
  const Parsed* const input = parameters.Find("input");
  if (input == nullptr) return ParameterError("input", "is missing");
  MILLRACE_ASSIGN_OR_RETURN(request.inputs, ReadInputs("input", *input, kMaxInputs));
  MILLRACE_ASSIGN_OR_RETURN(const std::optional<std::string> format, parameters.Text("encoding_format"));
  if (format.has_value() && *format != "float" && *format != "base64") {
    return ParameterError("encoding_format", "must be float or base64");
  }
  request.base64 = format == "base64";
  MILLRACE_ASSIGN_OR_RETURN(request.dimensions, parameters.Integer("dimensions", 1, 1 << 30));
  parameters.Ignore({"user"});
  MILLRACE_RETURN_IF_ERROR(parameters.RefuseOthers());
  return request;
}

// ---- errors ----

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

std::string ErrorJson(int http_status, const absl::Status& status) {
  const std::string parameter = PayloadOf(status, kParameterUrl), code = PayloadOf(status, kCodeUrl);
  Json error = {{"message", std::string(status.message())},
                {"type", http_status == 429  ? "rate_limit_error"
                         : http_status < 500 ? "invalid_request_error"
                                             : "server_error"}};
  error["param"] = parameter.empty() ? Json() : Json(parameter);
  error["code"] = code.empty() ? Json() : Json(code);
  return Dump({{"error", std::move(error)}});
}

// ---- replies ----

class ReplyJson {
 public:
  explicit ReplyJson(ReplyWriter* writer) : head_(writer->head_), writer_(writer) {}

  static Json Head(const ReplyWriter::Head& head, bool part) {
    return {{"id", head.id},
            {"object", head.chat ? (part ? "chat.completion.chunk" : "chat.completion") : "text_completion"},
            {"created", head.created},
            {"model", head.model},
            {"seed", head.seed}};
  }

  // Of some tokens that follow those that were given before.
  Json LogProbabilities(const Choice& choice) {
    if (!head_.log_probabilities) return nullptr;
    return head_.chat ? OfChat(choice.tokens) : OfCompletion(choice);
  }

  Json Of(const Choice& choice, bool part) {
    Json json = {{"index", choice.index}};
    if (!head_.chat) {
      json["text"] = choice.text;
    } else if (part) {
      json["delta"] = Json::object();
      if (!choice.text.empty()) json["delta"]["content"] = choice.text;
    } else {
      json["message"] = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
    }
    json["logprobs"] = LogProbabilities(choice);
    json["finish_reason"] = choice.ending == Ending::kNone ? Json() : Json(FinishReason(choice.ending));
    return json;
  }

 private:
  Json OfChat(const std::vector<Token>& tokens) const {
    const auto of = [this](uint32_t id, const std::optional<float>& log_probability) -> Json {
      const std::string bytes = writer_->tokenizer_->TokenBytes(id);
      Json list = Json::array();
      for (const char byte : bytes) list.push_back(static_cast<uint8_t>(byte));
      return {{"token", TokenName(bytes)}, {"logprob", OptionalNumber(log_probability)}, {"bytes", std::move(list)}};
    };
    Json content = Json::array();
    for (const Token& token : tokens) {
      Json json = of(token.id, token.log_probability);
      json["top_logprobs"] = Json::array();
      for (const auto& [id, log_probability] : token.likeliest) {
        json["top_logprobs"].push_back(of(id, log_probability));
      }
      content.push_back(std::move(json));
    }
    return {{"content", std::move(content)}, {"refusal", nullptr}};
  }

  Json OfCompletion(const Choice& choice) {
    Json names = Json::array(), numbers = Json::array(), likeliest = Json::array(), offsets = Json::array();
    ReplyWriter::Position& position = writer_->positions_[choice.index];
    for (size_t i = 0; i < choice.tokens.size(); ++i) {
      const Token& token = choice.tokens[i];
      const std::string bytes = writer_->tokenizer_->TokenBytes(token.id);
      names.push_back(TokenName(bytes));
      numbers.push_back(OptionalNumber(token.log_probability));
      offsets.push_back(position.characters);
      if (i >= choice.silent) position.characters += text::CountCharacters(position.readable.Add(bytes));
      if (!token.log_probability.has_value()) {
        likeliest.push_back(nullptr);
        continue;
      }
      // By name, with the token itself; of names that are equal the likelier one stays.
      Json of_token = Json::object();
      for (const auto& [id, log_probability] : token.likeliest) {
        of_token.emplace(TokenName(writer_->tokenizer_->TokenBytes(id)), log_probability);
      }
      of_token.emplace(TokenName(bytes), *token.log_probability);
      likeliest.push_back(std::move(of_token));
    }
    return {{"tokens", std::move(names)},
            {"token_logprobs", std::move(numbers)},
            {"top_logprobs", std::move(likeliest)},
            {"text_offset", std::move(offsets)}};
  }

  const ReplyWriter::Head& head_;
  ReplyWriter* const writer_;
};

std::string ReplyWriter::Whole(absl::Span<const Choice> choices, const Usage& usage) {
  Json json = ReplyJson::Head(head_, /*part=*/false);
  json["choices"] = Json::array();
  for (const Choice& choice : choices) json["choices"].push_back(ReplyJson(this).Of(choice, /*part=*/false));
  json["usage"] = UsageJson(usage);
  return Dump(json);
}

std::string ReplyWriter::BeginEvent(int64_t index) const {
  if (!head_.chat) return "";
  Json json = ReplyJson::Head(head_, /*part=*/true);
  json["choices"] = Json::array({{{"index", index},
                                  {"delta", {{"role", "assistant"}, {"content", ""}}},
                                  {"logprobs", nullptr},
                                  {"finish_reason", nullptr}}});
  if (head_.include_usage) json["usage"] = nullptr;
  return Event(json);
}

std::string ReplyWriter::PartEvent(const Choice& part) {
  Json json = ReplyJson::Head(head_, /*part=*/true);
  json["choices"] = Json::array({ReplyJson(this).Of(part, /*part=*/true)});
  if (head_.include_usage) json["usage"] = nullptr;
  return Event(json);
}

std::string ReplyWriter::EndEvents(const Usage& usage) const {
  std::string events;
  if (head_.include_usage) {
    Json json = ReplyJson::Head(head_, /*part=*/true);
    json["choices"] = Json::array();
    json["usage"] = UsageJson(usage);
    events = Event(json);
  }
  return events + "data: [DONE]\n\n";
}

std::string ReplyWriter::ErrorEvent(const absl::Status& status) {
  return absl::StrCat("data: ", ErrorJson(HttpStatusOf(status), status), "\n\n");
}

std::string EmbeddingsJson(const std::string& model, absl::Span<const std::vector<float>> embeddings, bool base64,
                           int64_t prompt_tokens) {
  Json data = Json::array();
  for (size_t i = 0; i < embeddings.size(); ++i) {
    const std::vector<float>& embedding = embeddings[i];
    Json json = {{"object", "embedding"}, {"index", i}};
    if (base64) {
      json["embedding"] =
          absl::Base64Escape({reinterpret_cast<const char*>(embedding.data()), embedding.size() * sizeof(float)});
    } else {
      json["embedding"] = embedding;
    }
    data.push_back(std::move(json));
  }
  return Dump({{"object", "list"},
               {"data", std::move(data)},
               {"model", model},
               {"usage", {{"prompt_tokens", prompt_tokens}, {"total_tokens", prompt_tokens}}}});
}

}  // namespace millrace::serve
