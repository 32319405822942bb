// A server in this process, asked with plain bytes.
#include "serve/http.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "serve/openai.h"
#include "serve/tiny_server.h"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace::serve {
namespace {

using testing::Connection;
using testing::Exchange;
using ::testing::HasSubstr;
using testing::PostBytes;
using ::testing::StartsWith;
using Json = nlohmann::json;

constexpr char kToken[] = "0123456789abcdef";

class HttpTest : public ::testing::Test {
 protected:
  void StartServer(const std::string& token = "", int64_t waiting = 100) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.token = token;
    options.patience = absl::Milliseconds(500);
    options.now = [] { return absl::FromUnixSeconds(1234567); };
    options.engine = {.sequences = 2, .waiting = waiting, .prompt_tokens = 16};
    ServedModel other = other_.served;
    other.name = "other";
    auto server = Server::Start(options, {tiny_.served, other}, &metrics_);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }
  std::string Send(const std::string& bytes) { return Exchange(server_->address(), bytes); }
  std::string Get(const std::string& path) { return Send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n"); }
  static std::string BodyOf(const std::string& reply) { return reply.substr(reply.find("\r\n\r\n") + 4); }
  Json Post(const std::string& path, const Json& body, int status = 200) {
    const std::string reply = Send(PostBytes(path, body.dump()));
    EXPECT_THAT(reply, StartsWith(absl::StrCat("HTTP/1.1 ", status, " ")));
    return Json::parse(BodyOf(reply), nullptr, false);
  }
  // The data of each event of a chunked body.
  static std::vector<std::string> EventsOf(const std::string& reply) {
    std::string body, rest = BodyOf(reply);
    for (size_t size; (size = std::stoul(rest, nullptr, 16)) > 0;) {
      const size_t begin = rest.find("\r\n") + 2;
      body += rest.substr(begin, size);
      rest.erase(0, begin + size + 2);
    }
    std::vector<std::string> events;
    for (absl::string_view event : absl::StrSplit(body, "\n\n", absl::SkipEmpty())) {
      EXPECT_TRUE(absl::ConsumePrefix(&event, "data: ")) << event;
      events.emplace_back(event);
    }
    return events;
  }

  TinyModel tiny_;
  TinyModel other_{"gpt2"};
  Metrics metrics_;
  std::unique_ptr<Server> server_;
};

TEST_F(HttpTest, ListsModels) {
  StartServer();
  const Json list = Json::parse(BodyOf(Get("/v1/models")));
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0],
            (Json{{"id", "tiny"}, {"object", "model"}, {"created", 1234567}, {"owned_by", "millrace"}}));
  EXPECT_EQ(Json::parse(BodyOf(Get("/v1/models/other"))), list["data"][1]);
  const std::string unknown = Get("/v1/models/none");
  EXPECT_THAT(unknown, StartsWith("HTTP/1.1 404 "));
  EXPECT_EQ(Json::parse(BodyOf(unknown))["error"]["code"], "model_not_found");
}

TEST_F(HttpTest, CompletesAllPromptsAndSamples) {
  StartServer();
  const Json body = {{"model", "tiny"}, {"prompt", {"ABC", "0"}}, {"n", 2},       {"max_tokens", 7},
                     {"seed", 5},       {"echo", true},           {"logprobs", 2}};
  const Json reply = Post("/v1/completions", body);
  ASSERT_EQ(reply["choices"].size(), 4u) << reply;
  EXPECT_EQ(reply["object"], "text_completion");
  EXPECT_EQ(reply["created"], 1234567);
  EXPECT_EQ(reply["seed"], 5);
  EXPECT_EQ(reply["usage"], (Json{{"prompt_tokens", 4}, {"completion_tokens", 28}, {"total_tokens", 32}}));
  for (size_t i = 0; i < 4; ++i) {
    const Json& choice = reply["choices"][i];
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["finish_reason"], "length");
    EXPECT_THAT(choice["text"].get<std::string>(), StartsWith(i < 2 ? "ABC" : "0"));
    std::string joined;
    for (const Json& token : choice["logprobs"]["tokens"]) joined += token.get<std::string>();
    EXPECT_EQ(joined, choice["text"]);
    EXPECT_TRUE(choice["logprobs"]["token_logprobs"][0].is_null());
    EXPECT_EQ(choice["logprobs"]["text_offset"].size(), (i < 2 ? 3u : 1u) + 7);
  }
  EXPECT_NE(reply["choices"][0]["text"], reply["choices"][1]["text"]);
  // The same again, also as a stream; and what a stream says is what a whole reply says.
  EXPECT_EQ(Post("/v1/completions", body)["choices"], reply["choices"]);
  Json streamed = body;
  streamed["stream"] = true;
  streamed["stream_options"] = {{"include_usage", true}};
  const std::vector<std::string> events = EventsOf(Send(PostBytes("/v1/completions", streamed.dump())));
  ASSERT_GT(events.size(), 4u);
  EXPECT_EQ(events.back(), "[DONE]");
  std::vector<Json> choices(4);
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const Json event = Json::parse(events[i]);
    EXPECT_TRUE(event["usage"].is_null());
    const Json& part = event["choices"][0];
    Json& choice = choices[part["index"].get<size_t>()];
    if (choice.is_null()) {
      choice = part;
      continue;
    }
    choice["text"] = choice["text"].get<std::string>() + part["text"].get<std::string>();
    choice["finish_reason"] = part["finish_reason"];
    for (const auto& [name, list] : part["logprobs"].items()) {
      for (const Json& entry : list) choice["logprobs"][name].push_back(entry);
    }
  }
  EXPECT_EQ(Json(choices), reply["choices"]);
  const Json last = Json::parse(events[events.size() - 2]);
  EXPECT_EQ(last["choices"], Json::array());
  EXPECT_EQ(last["usage"], reply["usage"]);
}

TEST_F(HttpTest, PicksASeedAndTellsIt) {
  StartServer();
  Json body = {{"model", "tiny"}, {"prompt", "ABC"}, {"max_tokens", 30}};
  const Json first = Post("/v1/completions", body), second = Post("/v1/completions", body);
  EXPECT_NE(first["seed"], second["seed"]);
  EXPECT_NE(first["id"], second["id"]);
  body["seed"] = first["seed"];
  EXPECT_EQ(Post("/v1/completions", body)["choices"], first["choices"]);
}

TEST_F(HttpTest, ReadsPromptsWithoutAnswering) {
  StartServer();
  const Json reply =
      Post("/v1/completions",
           {{"model", "tiny"}, {"prompt", {1, 2, 3}}, {"n", 2}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  ASSERT_EQ(reply["choices"].size(), 2u);
  EXPECT_EQ(reply["choices"][1]["text"], "123");
  EXPECT_EQ(reply["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(reply["choices"][0]["logprobs"]["tokens"].size(), 3u);
  EXPECT_EQ(reply["choices"][0]["logprobs"], reply["choices"][1]["logprobs"]);
  EXPECT_EQ(reply["usage"]["completion_tokens"], 0);
}

TEST_F(HttpTest, ExplainsWhatItRefuses) {
  StartServer();
  const Json longer = Post("/v1/completions", {{"model", "tiny"}, {"prompt", std::string(81, 'A')}}, 400)["error"];
  EXPECT_EQ(longer["code"], "context_length_exceeded");
  EXPECT_EQ(longer["param"], "prompt");
  EXPECT_EQ(longer["message"], "'prompt' has 81 tokens where the model's context has 80");
  const Json unknown = Post("/v1/completions", {{"model", "none"}, {"prompt", "A"}}, 404)["error"];
  EXPECT_EQ(unknown["code"], "model_not_found");
  EXPECT_THAT(unknown["message"].get<std::string>(), HasSubstr("tiny, other"));
  EXPECT_EQ(Post("/v1/completions", {{"model", "tiny"}, {"prompt", {37}}}, 400)["error"]["param"], "prompt");
  EXPECT_EQ(Post("/v1/completions", {{"model", "tiny"}, {"prompt", ""}}, 400)["error"]["param"], "prompt");
  EXPECT_THAT(Post("/v1/completions", {{"model", "tiny"}, {"prompt", "a"}}, 400)["error"]["message"].get<std::string>(),
              HasSubstr("U+0061"));
  const Json chat = {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", "A"}}}}};
  EXPECT_THAT(Post("/v1/chat/completions", chat, 400)["error"]["message"].get<std::string>(), HasSubstr("it is tiny"));
  EXPECT_EQ(Post("/v1/embeddings", {{"model", "tiny"}, {"input", "A"}, {"dimensions", 3}}, 400)["error"]["param"],
            "dimensions");
  EXPECT_THAT(Get("/v1/completions"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Send(PostBytes("/v1/models", "{}")), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Get("/v2"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"),
              StartsWith("HTTP/1.1 415 "));
  EXPECT_THAT(Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: ",
                                kMaxBodyBytes + 1, "\r\n\r\n")),
              StartsWith("HTTP/1.1 413 "));
}

TEST_F(HttpTest, WithoutATokenAnswersToThisMachinesNamesAlone) {
  const auto as = [this](const std::string& host, const std::string& path = "/v1/models") {
    return Send("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + kToken + "\r\n\r\n");
  };
  StartServer();
  EXPECT_THAT(as("127.0.0.1:8080"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(as("evil.example:8080"), ::testing::AllOf(StartsWith("HTTP/1.1 403 "), HasSubstr("--api-token-file")));
  EXPECT_THAT(as("evil.example", "/metrics"), StartsWith("HTTP/1.1 403 "));
  EXPECT_THAT(as("evil.example", "/health"), StartsWith("HTTP/1.1 200 ")) << "probes come under any name";
  StartServer(kToken);
  EXPECT_THAT(as("models.example"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpTest, WantsItsToken) {
  StartServer(kToken);
  const std::string body = R"({"model": "tiny", "prompt": "A"})";
  EXPECT_THAT(Send(PostBytes("/v1/completions", body)), StartsWith("HTTP/1.1 401 "));
  for (const char* wrong : {"Bearer 0123456789abcdeg", "Bearer 0123456789abcde", "Bearer ", "0123456789abcdef"}) {
    EXPECT_THAT(Send(PostBytes("/v1/completions", body, absl::StrCat("Authorization: ", wrong, "\r\n"))),
                StartsWith("HTTP/1.1 401 "));
  }
  EXPECT_THAT(Send(PostBytes("/v1/completions", body, absl::StrCat("Authorization: Bearer ", kToken, "\r\n"))),
              StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Get("/v1/models"), StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Get("/metrics"), StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Get("/health"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpTest, AFullQueueSaysWhenToComeAgain) {
  StartServer("", /*waiting=*/1);
  // Many samples take long, and their connection stays open while others ask.
  const Json many = {{"model", "tiny"}, {"prompt", "A"}, {"n", 128}, {"max_tokens", 79}, {"stream", true}};
  std::vector<std::unique_ptr<Connection>> others;
  std::string reply;
  // Each of them fills the queue, until one is refused.
  while (!absl::StartsWith(reply, "HTTP/1.1 429 ")) {
    auto connection = std::make_unique<Connection>(server_->address());
    connection->Send(PostBytes("/v1/completions", many.dump()));
    reply = connection->ReadUntil("\r\n\r\n");
    ASSERT_THAT(reply, ::testing::AnyOf(StartsWith("HTTP/1.1 200 "), StartsWith("HTTP/1.1 429 ")));
    others.push_back(std::move(connection));
  }
  EXPECT_THAT(reply, HasSubstr("\r\nRetry-After: 1\r\n"));
  const Json error = Json::parse(others.back()->ReadAll())["error"];
  EXPECT_EQ(error["type"], "rate_limit_error");
  others.clear();
  // Those who hung up are forgotten.
  do {
    reply = Send(PostBytes("/v1/completions", R"({"model": "tiny", "prompt": "A"})"));
  } while (absl::StartsWith(reply, "HTTP/1.1 429 "));
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpTest, CountsWhatItDoes) {
  StartServer();
  Post("/v1/completions", {{"model", "tiny"}, {"prompt", "ABC"}, {"max_tokens", 4}});
  const std::string metrics = Get("/metrics");
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_requests_total{path=\"/v1/completions\",status=\"200\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_tokens_total{kind=\"prompt\",model=\"tiny\"} 3\n"));
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_tokens_total{kind=\"drawn\",model=\"tiny\"} 4\n"));
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_seats{model=\"tiny\"} 2\n"));
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_first_token_duration_seconds_count{model=\"tiny\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("millrace_serve_token_duration_seconds_count{model=\"tiny\"} 3\n"));
}

TEST_F(HttpTest, ServesNoTwoModelsOfOneName) {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  EXPECT_TRUE(absl::IsInvalidArgument(Server::Start(options, {tiny_.served, tiny_.served}, &metrics_).status()));
}

}  // namespace
}  // namespace millrace::serve
