#include "serve/http.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/credentials.h"
#include "common/log.h"
#include "common/philox.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "serve/openai.h"

namespace millrace::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kJson[] = "application/json; charset=utf-8";
constexpr absl::string_view kModels = "/v1/models";
// So often a thread that waits for its model looks whether its client is still there.
constexpr absl::Duration kLook = absl::Milliseconds(200);
// More events than this are not sent together.
constexpr size_t kEventBytes = 1 << 16;
constexpr char kRetryAfterSeconds[] = "1";
// Threads for requests that need no seat, or whose clients are slow.
constexpr int64_t kFurtherThreads = 32;
constexpr int64_t kMaxThreads = 1024;
// JSON's readers keep whole numbers up to 2^53.
constexpr uint64_t kSeedMask = (uint64_t{1} << 53) - 1;

HttpResponse JsonReply(int status, std::string body) {
  return {.status = status,
          .content_type = kJson,
          .body = std::move(body),
          .headers = {{"X-Content-Type-Options", "nosniff"}, {"Cache-Control", "no-store"}},
          .pieces = nullptr};
}

HttpResponse Refuse(int http_status, const absl::Status& status) {
  HttpResponse response = JsonReply(http_status, ErrorJson(http_status, status));
  if (http_status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (http_status == 429) response.headers.emplace_back("Retry-After", kRetryAfterSeconds);
  return response;
}

HttpResponse Refuse(const absl::Status& status) { return Refuse(HttpStatusOf(status), status); }

// An answer that nobody reads.
HttpResponse HungUp() { return Refuse(503, absl::UnavailableError("the client has hung up")); }

}  // namespace

struct Server::Impl {
  // A request that is under way.
  struct Work {
    GenerateRequest request;
    const Engine* engine = nullptr;
    std::vector<std::vector<uint32_t>> prompts;
    std::vector<std::string> echoes;  // of each prompt: its text, if it is to be echoed
    size_t silent = 0;                // tokens at the front of a prompt that are no part of its text
    std::unique_ptr<Reply> reply;
    std::unique_ptr<ReplyWriter> writer;
    Usage usage;

    int64_t choice(int64_t task, int64_t sample) const { return task * request.task.samples + sample; }
    int64_t choices() const { return static_cast<int64_t>(prompts.size()) * request.task.samples; }
  };

  ServerOptions options;
  Metrics* metrics = nullptr;
  std::vector<std::unique_ptr<Engine>> engines;
  int64_t created = 0;
  bool for_this_machine = false;  // alone, and nobody is asked who they are
  std::atomic<uint64_t> requests = 0;
  std::unique_ptr<HttpServer> http;  // last: its threads use all the rest

  HttpResponse Answer(const HttpRequest& request) {
    HttpResponse response = Route(request);
    Count(request.path, response.status);
    return response;
  }

  void Count(const std::string& path, int status) {
    static const auto* const paths = new std::set<std::string>{
        "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics"};
    metrics
        ->Counter("millrace_serve_requests_total", "Requests answered.",
                  {{"path", paths->contains(path) ? path : "other"}, {"status", absl::StrCat(status)}})
        ->Increment();
  }

  HttpResponse Route(const HttpRequest& request) {
    const bool reads = request.method == "GET" || request.method == "HEAD";
    const bool takes_post =
        request.path == "/v1/completions" || request.path == "/v1/chat/completions" || request.path == "/v1/embeddings";
    const bool of_models = request.path == kModels || absl::StartsWith(request.path, absl::StrCat(kModels, "/"));
    if (request.path == "/health" && reads) return JsonReply(200, R"({"status":"ok"})");
    if (!Allowed(request.authorization)) {
      return Refuse(absl::UnauthenticatedError("this server wants its token, as Authorization: Bearer TOKEN"));
    }
    if (for_this_machine && !NamesThisMachine(request.host)) {
      return Refuse(403, absl::PermissionDeniedError("without --api-token-file this server is at this machine's own "
                                                     "address, as 127.0.0.1: not under the name that was asked for"));
    }
    if (!takes_post && !of_models && request.path != "/health" && request.path != "/metrics") {
      return Refuse(absl::NotFoundError(
          absl::StrCat("there is no ", request.path.substr(0, 100),
                       "; there are /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models, /health and "
                       "/metrics")));
    }
    if (takes_post ? request.method != "POST" : !reads) {
      return Refuse(405,
                    absl::InvalidArgumentError(absl::StrCat(request.path, takes_post ? " takes POST" : " takes GET")));
    }
    if (request.path == "/metrics") {
      return {.status = 200,
              .content_type = "text/plain; version=0.0.4",
              .body = metrics->Text(),
              .headers = {},
              .pieces = nullptr};
    }
    if (of_models) return AnswerModels(request.path);
    // A page of another site can send no such type without asking first.
    if (!absl::StartsWith(request.content_type, "application/json")) {
      return Refuse(415, absl::InvalidArgumentError("the body must be sent as application/json"));
    }
    if (request.path == "/v1/embeddings") return Embed(request);
    return Generate(request, request.path == "/v1/chat/completions");
  }

  bool Allowed(absl::string_view authorization) const {
    if (options.token.empty()) return true;
    return absl::ConsumePrefix(&authorization, "Bearer ") && authorization.size() == options.token.size() &&
           CRYPTO_memcmp(authorization.data(), options.token.data(), options.token.size()) == 0;
  }

  absl::StatusOr<Engine*> Find(const std::string& name) const {
    std::vector<std::string> names;
    for (const std::unique_ptr<Engine>& engine : engines) {
      if (engine->model().name == name) return engine.get();
      names.push_back(engine->model().name);
    }
    absl::Status status = ParameterError("model",
                                         absl::StrCat("names no model that is served: '", name.substr(0, 100),
                                                      "'; there are ", absl::StrJoin(names, ", ")),
                                         "model_not_found");
    absl::Status not_found(absl::StatusCode::kNotFound, status.message());
    status.ForEachPayload(
        [&](absl::string_view url, const absl::Cord& payload) { not_found.SetPayload(url, payload); });
    return not_found;
  }

  HttpResponse AnswerModels(absl::string_view path) const {
    const auto of = [this](const std::string& name) -> Json {
      return {{"id", name}, {"object", "model"}, {"created", created}, {"owned_by", "millrace"}};
    };
    if (absl::ConsumePrefix(&path, kModels) && absl::ConsumePrefix(&path, "/")) {
      const absl::StatusOr<Engine*> engine = Find(std::string(path));
      return engine.ok() ? JsonReply(200, of((*engine)->model().name).dump()) : Refuse(engine.status());
    }
    Json data = Json::array();
    for (const std::unique_ptr<Engine>& engine : engines) data.push_back(of(engine->model().name));
    return JsonReply(200, Json{{"object", "list"}, {"data", std::move(data)}}.dump());
  }

  // ---- prompts ----

  // A text is the beginning of a document, as training saw it.
  static absl::StatusOr<std::vector<uint32_t>> Encode(const Engine& engine, const Input& input, const char* parameter) {
    if (const auto* const ids = std::get_if<std::vector<uint32_t>>(&input)) {
      if (ids->empty()) return ParameterError(parameter, "must not hold an empty list");
      for (const uint32_t id : *ids) {
        if (id < engine.model().network->vocab_size()) continue;
        return ParameterError(parameter, absl::StrCat("has the token id ", id, ", which is not below the vocabulary's ",
                                                      engine.model().network->vocab_size()));
      }
      return *ids;
    }
    std::vector<uint32_t> ids;
    const text::Tokenizer& tokenizer = *engine.model().tokenizer;
    if (const std::optional<uint32_t> begin = tokenizer.end_of_text(); begin.has_value()) ids.push_back(*begin);
    if (const absl::Status encoded = tokenizer.EncodeOrdinary(std::get<std::string>(input), &ids); !encoded.ok()) {
      return ParameterError(parameter, encoded.message());
    }
    if (ids.empty()) return ParameterError(parameter, "must not be empty");
    return ids;
  }

  static absl::StatusOr<std::vector<uint32_t>> EncodeMessages(const Engine& engine,
                                                              absl::Span<const text::Message> messages) {
    const ServedModel& model = engine.model();
    if (model.chat_template == nullptr) {
      return ParameterError("model", absl::StrCat("names a model that takes no messages: ", model.no_chat));
    }
    const absl::StatusOr<text::ChatText> asked = model.chat_template->Prompt(messages);
    if (!asked.ok()) return ParameterError("messages", asked.status().message());
    const absl::StatusOr<text::ChatTokens> tokens = text::EncodeChat(*asked, *model.tokenizer);
    if (!tokens.ok()) return ParameterError("messages", tokens.status().message());
    return tokens->ids;
  }

  static absl::Status CheckLength(const Engine& engine, const std::vector<uint32_t>& prompt, const char* parameter) {
    if (static_cast<int64_t>(prompt.size()) <= engine.context()) return absl::OkStatus();
    return ParameterError(
        parameter, absl::StrCat("has ", prompt.size(), " tokens where the model's context has ", engine.context()),
        "context_length_exceeded");
  }

  // ---- embeddings ----

  HttpResponse Embed(const HttpRequest& http_request) {
    const absl::StatusOr<std::string> body = EmbeddingsOf(http_request);
    if (body.ok()) return JsonReply(200, *body);
    return absl::IsCancelled(body.status()) ? HungUp() : Refuse(body.status());
  }

  absl::StatusOr<std::string> EmbeddingsOf(const HttpRequest& http_request) {
    MILLRACE_ASSIGN_OR_RETURN(const EmbeddingsRequest request, ParseEmbeddings(http_request.body));
    MILLRACE_ASSIGN_OR_RETURN(Engine* const engine, Find(request.model));
    const int64_t hidden = engine->model().network->hidden_size();
    if (request.dimensions.value_or(hidden) != hidden) {
      return ParameterError("dimensions", absl::StrCat("is not supported but as ", hidden, ", which all have"),
                            "unsupported_parameter");
    }
    std::vector<Task> tasks;
    int64_t prompt_tokens = 0;
    for (const Input& input : request.inputs) {
      Task& task = tasks.emplace_back();
      MILLRACE_ASSIGN_OR_RETURN(task.prompt, Encode(*engine, input, "input"));
      MILLRACE_RETURN_IF_ERROR(CheckLength(*engine, task.prompt, "input"));
      prompt_tokens += static_cast<int64_t>(task.prompt.size());
      task.embed = true;
    }
    std::vector<std::vector<float>> embeddings(tasks.size());
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<Reply> reply, engine->Submit(std::move(tasks)));
    while (!reply->done()) {
      MILLRACE_ASSIGN_OR_RETURN(std::optional<Piece> piece, reply->Next(kLook));
      if (piece.has_value() && piece->sample < 0) {
        embeddings[static_cast<size_t>(piece->task)] = std::move(piece->embedding);
      } else if (!piece.has_value() && http_request.gone()) {
        return absl::CancelledError("");
      }
    }
    return EmbeddingsJson(request.model, embeddings, request.base64, prompt_tokens);
  }

  // ---- completions and chats ----

  HttpResponse Generate(const HttpRequest& http_request, bool chat) {
    absl::StatusOr<std::shared_ptr<Work>> begun = Begin(http_request, chat);
    if (!begun.ok()) return Refuse(begun.status());
    const std::shared_ptr<Work> work = *std::move(begun);
    if (work->request.stream) {
      HttpResponse response = JsonReply(200, "");
      response.content_type = "text/event-stream";
      response.pieces = [work, gone = http_request.gone](const HttpResponse::Send& send) { Stream(*work, gone, send); };
      return response;
    }
    const absl::StatusOr<std::string> body = WholeReply(*work, http_request.gone);
    if (body.ok()) return JsonReply(200, *body);
    return absl::IsCancelled(body.status()) ? HungUp() : Refuse(body.status());
  }

  absl::StatusOr<std::shared_ptr<Work>> Begin(const HttpRequest& http_request, bool chat) {
    auto work = std::make_shared<Work>();
    GenerateRequest& request = work->request;
    MILLRACE_ASSIGN_OR_RETURN(request, chat ? ParseChat(http_request.body) : ParseCompletion(http_request.body));
    MILLRACE_ASSIGN_OR_RETURN(Engine* const engine, Find(request.model));
    const ServedModel& model = engine->model();
    work->engine = engine;
    if (chat) {
      MILLRACE_ASSIGN_OR_RETURN(work->prompts.emplace_back(), EncodeMessages(*engine, request.messages));
      MILLRACE_RETURN_IF_ERROR(CheckLength(*engine, work->prompts.back(), "messages"));
    }
    for (const Input& prompt : request.prompts) {
      MILLRACE_ASSIGN_OR_RETURN(work->prompts.emplace_back(), Encode(*engine, prompt, "prompt"));
      MILLRACE_RETURN_IF_ERROR(CheckLength(*engine, work->prompts.back(), "prompt"));
      if (!request.echo) continue;
      const auto* const text = std::get_if<std::string>(&prompt);
      work->echoes.push_back(text != nullptr ? *text
                                             : text::ReadableTextOf(model.tokenizer->Decode(work->prompts.back())));
      if (text != nullptr && model.tokenizer->end_of_text().has_value()) work->silent = 1;
    }
    request.task.max_tokens = request.max_tokens.value_or(engine->context());
    if (const std::optional<uint32_t> end = model.tokenizer->end_of_text()) request.task.stop_tokens.push_back(*end);
    if (chat && model.end_of_turn.has_value()) request.task.stop_tokens.push_back(*model.end_of_turn);
    const uint64_t number = requests++;
    const std::array<uint32_t, 4> words = Philox(options.first_seed)(1, number);
    request.task.seed = request.seed.value_or((words[0] | uint64_t{words[1]} << 32) & kSeedMask);
    std::vector<Task> tasks;
    for (const std::vector<uint32_t>& prompt : work->prompts) {
      tasks.push_back(request.task);
      tasks.back().prompt = prompt;
      work->usage.prompt_tokens += static_cast<int64_t>(prompt.size());
    }
    work->writer = std::make_unique<ReplyWriter>(
        ReplyWriter::Head{.chat = chat,
                          .id = absl::StrFormat("%s-%08x%08x%08x", chat ? "chatcmpl" : "cmpl", words[2], words[3],
                                                static_cast<uint32_t>(number)),
                          .created = absl::ToUnixSeconds(options.now()),
                          .model = request.model,
                          .seed = request.task.seed,
                          .log_probabilities = request.task.likeliest.has_value(),
                          .include_usage = request.include_usage},
        model.tokenizer);
    MILLRACE_ASSIGN_OR_RETURN(work->reply, engine->Submit(std::move(tasks)));
    return work;
  }

  // What a piece adds to choices: to one, or, with an echoed prompt, to all of its samples.
  static std::vector<Choice> PartsOf(Work& work, Piece piece) {
    std::vector<Choice> parts;
    work.usage.drawn_tokens += piece.drawn;
    if (piece.sample >= 0) {
      parts.push_back({.index = work.choice(piece.task, piece.sample),
                       .text = std::move(piece.text),
                       .tokens = std::move(piece.tokens),
                       .ending = piece.ending});
      return parts;
    }
    if (!work.request.echo) return parts;
    for (int64_t sample = 0; sample < work.request.task.samples; ++sample) {
      parts.push_back({.index = work.choice(piece.task, sample),
                       .text = work.echoes[static_cast<size_t>(piece.task)],
                       .tokens = piece.tokens,
                       .silent = work.silent});
    }
    return parts;
  }

  static absl::StatusOr<std::string> WholeReply(Work& work, const std::function<bool()>& gone) {
    std::vector<Choice> choices(static_cast<size_t>(work.choices()));
    while (!work.reply->done()) {
      MILLRACE_ASSIGN_OR_RETURN(std::optional<Piece> piece, work.reply->Next(kLook));
      if (!piece.has_value()) {
        if (gone()) return absl::CancelledError("");
        continue;
      }
      for (Choice& part : PartsOf(work, *std::move(piece))) {
        Choice& choice = choices[static_cast<size_t>(part.index)];
        choice.index = part.index;
        choice.text += part.text;
        std::move(part.tokens.begin(), part.tokens.end(), std::back_inserter(choice.tokens));
        choice.silent = std::max(choice.silent, part.silent);
        choice.ending = part.ending;
      }
    }
    return work.writer->Whole(choices, work.usage);
  }

  static void Stream(Work& work, const std::function<bool()>& gone, const HttpResponse::Send& send) {
    std::string events;
    for (int64_t index = 0; index < work.choices(); ++index) events += work.writer->BeginEvent(index);
    // What has piled up while the client was slow goes together.
    while (!work.reply->done()) {
      absl::StatusOr<std::optional<Piece>> piece = work.reply->Next(events.empty() ? kLook : absl::ZeroDuration());
      if (!piece.ok()) {
        send(events + ReplyWriter::ErrorEvent(piece.status()));
        return;
      }
      if (piece->has_value()) {
        for (const Choice& part : PartsOf(work, **std::move(piece))) events += work.writer->PartEvent(part);
        if (events.size() < kEventBytes) continue;
      } else if (events.empty()) {
        if (gone()) return;
        continue;
      }
      if (!send(events)) return;
      events.clear();
    }
    send(events + work.writer->EndEvents(work.usage));
  }
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<ServedModel>& models, Metrics* metrics) {
  std::unique_ptr<Server> server(new Server(std::make_unique<Impl>()));
  Impl& impl = *server->impl_;
  impl.options = options;
  impl.metrics = metrics;
  impl.created = absl::ToUnixSeconds(options.now());
  impl.for_this_machine = options.token.empty() && IsLoopback(options.listen);
  std::set<std::string> names;
  for (const ServedModel& model : models) {
    if (!names.insert(model.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("two models are named ", model.name));
    }
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Start(model, options.engine, metrics);
    if (!engine.ok()) return Annotate(engine.status(), absl::StrCat("model ", model.name));
    impl.engines.push_back(*std::move(engine));
  }
  HttpServerOptions http;
  http.listen = options.listen;
  http.max_body_bytes = kMaxBodyBytes;
  // A thread for every sequence that may be under way or wait, as each may be a request of its own.
  const auto sequences = static_cast<int64_t>(models.size()) * (options.engine.sequences + options.engine.waiting);
  http.threads = static_cast<int>(std::min(sequences + kFurtherThreads, kMaxThreads));
  http.patience = options.patience;
  http.answer = [&impl](const HttpRequest& request) { return impl.Answer(request); };
  http.refuse = [](int status, absl::string_view why) { return Refuse(status, absl::InvalidArgumentError(why)); };
  MILLRACE_ASSIGN_OR_RETURN(impl.http, HttpServer::Start(std::move(http)));
  return server;
}

Server::~Server() {
  for (std::unique_ptr<Engine>& engine : impl_->engines) engine->End();
}

const std::string& Server::address() const { return impl_->http->address(); }

void Server::Drain() { impl_->http->Drain(); }

}  // namespace millrace::serve
