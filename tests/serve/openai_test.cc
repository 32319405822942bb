#include "serve/openai.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "serve/tiny_server.h"
#include "testing/status.h"

namespace millrace::serve {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// The body with further parameters.
std::string Completion(const std::string& more = "") {
  return absl::StrCat(R"({"model": "m", "prompt": "p")", more.empty() ? "" : ", ", more, "}");
}
std::string Chat(const std::string& more = "") {
  return absl::StrCat(R"({"model": "m", "messages": [{"role": "user", "content": "hi"}])", more.empty() ? "" : ", ",
                      more, "}");
}
std::string Embeddings(const std::string& more) { return absl::StrCat(R"({"model": "m", )", more, "}"); }

TEST(ParseCompletion, TakesDefaults) {
  const auto request = ParseCompletion(Completion());
  ASSERT_OK(request);
  EXPECT_FALSE(request->chat);
  EXPECT_EQ(request->model, "m");
  EXPECT_EQ(request->prompts, std::vector<Input>{"p"});
  EXPECT_EQ(request->max_tokens, 16);
  EXPECT_EQ(request->task.samples, 1);
  EXPECT_EQ(request->task.sampling.temperature, 1);
  EXPECT_EQ(request->task.sampling.top_p, 1);
  EXPECT_EQ(request->task.sampling.top_k, 0);
  EXPECT_FALSE(request->task.likeliest.has_value());
  EXPECT_FALSE(request->seed.has_value());
  EXPECT_FALSE(request->stream || request->echo || request->include_usage || request->task.score_prompt);
}

TEST(ParseCompletion, TakesAll) {
  const auto request = ParseCompletion(Completion(
      R"("max_tokens": 0, "temperature": 0, "top_p": 0.5, "top_k": 7, "n": 3, "seed": -2, "stop": ["a", "b"],
         "echo": true, "logprobs": 2, "stream": true, "stream_options": {"include_usage": true},
         "frequency_penalty": -1, "presence_penalty": 2, "user": "u", "best_of": 3, "suffix": null,
         "logit_bias": {})"));
  ASSERT_OK(request);
  EXPECT_EQ(request->max_tokens, 0);
  EXPECT_EQ(request->task.sampling.temperature, 0);
  EXPECT_EQ(request->task.sampling.top_p, 0.5);
  EXPECT_EQ(request->task.sampling.top_k, 7);
  EXPECT_EQ(request->task.samples, 3);
  EXPECT_EQ(request->seed, static_cast<uint64_t>(-2));
  EXPECT_EQ(request->task.stop_strings, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(request->echo && request->stream && request->include_usage && request->task.score_prompt);
  EXPECT_EQ(request->task.likeliest, 2);
  EXPECT_EQ(request->task.frequency_penalty, -1);
  EXPECT_EQ(request->task.presence_penalty, 2);
}

TEST(ParseCompletion, TakesEveryFormOfPrompts) {
  const auto prompts = [](const std::string& json) {
    const auto request = ParseCompletion(R"({"model": "m", "prompt": )" + json + "}");
    EXPECT_OK(request);
    return request.ok() ? request->prompts : std::vector<Input>();
  };
  using Ids = std::vector<uint32_t>;
  EXPECT_EQ(prompts(R"(["a", ""])"), (std::vector<Input>{"a", ""}));
  EXPECT_EQ(prompts("[1, 2, 4294967295]"), (std::vector<Input>{Ids{1, 2, 4294967295}}));
  EXPECT_EQ(prompts("[[1], [2, 3]]"), (std::vector<Input>{Ids{1}, Ids{2, 3}}));
}

// The parameter that an error names.
std::string ParameterOf(const absl::Status& status) {
  const Json error = Json::parse(ErrorJson(HttpStatusOf(status), status))["error"];
  EXPECT_EQ(error["type"], "invalid_request_error");
  return error["param"].is_null() ? "" : error["param"].get<std::string>();
}

TEST(ParseCompletion, NamesWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("max_tokens": -1)", "max_tokens"},
      {R"("max_tokens": 1.5)", "max_tokens"},
      {R"("max_tokens": 18446744073709551615)", "max_tokens"},
      {R"("max_tokens": "1")", "max_tokens"},
      {R"("temperature": -0.1)", "temperature"},
      {R"("temperature": 1e999)", ""},
      {R"("top_p": 0)", "top_p"},
      {R"("top_p": 1.01)", "top_p"},
      {R"("top_k": -1)", "top_k"},
      {R"("n": 0)", "n"},
      {R"("n": 129)", "n"},
      {R"("prompt": [], "n": 1)", "prompt"},
      {R"("prompt": [1, "a"])", "prompt"},
      {R"("prompt": ["a", 1])", "prompt"},
      {R"("prompt": ["a", [1]])", "prompt"},
      {R"("prompt": [-1])", "prompt"},
      {R"("prompt": [4294967296])", "prompt"},
      {R"("prompt": [1.0])", "prompt"},
      {R"("prompt": {})", "prompt"},
      {R"("prompt": null)", "prompt"},
      {R"("prompt": ["a", "b"], "n": 65)", "n"},
      {R"("stop": "")", "stop"},
      {R"("stop": [1])", "stop"},
      {R"("stop": {})", "stop"},
      {R"("stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])", "stop"},
      {absl::StrCat(R"("stop": ")", std::string(1025, 'x'), "\""), "stop"},
      {R"("echo": 1)", "echo"},
      {R"("stream": "yes")", "stream"},
      {R"("stream_options": {})", "stream_options"},
      {R"("stream": true, "stream_options": [])", "stream_options"},
      {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options"},
      {R"("stream": true, "stream_options": {"other": 1})", "stream_options"},
      {R"("logprobs": 21)", "logprobs"},
      {R"("logprobs": true)", "logprobs"},
      {R"("suffix": "x")", "suffix"},
      {R"("best_of": 2)", "best_of"},
      {R"("logit_bias": {"1": 2})", "logit_bias"},
      {R"("model": 1)", "model"},
      {R"("frequency_penalty": 2.1)", "frequency_penalty"},
      {R"("presence_penalty": -2.1)", "presence_penalty"},
      {R"("seed": 1.5)", "seed"},
      {R"("max_completion_tokens": 3)", "max_completion_tokens"},
      {R"("temprature": 1)", "temprature"},
  };
  for (const auto& [more, parameter] : cases) {
    const absl::Status status = ParseCompletion(Completion(more)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << more << ": " << status;
    EXPECT_EQ(ParameterOf(status), parameter) << more << ": " << status;
  }
  EXPECT_EQ(ParameterOf(ParseCompletion(R"({"prompt": "p"})").status()), "model");
  EXPECT_EQ(ParameterOf(ParseCompletion(R"({"model": "m"})").status()), "prompt");
  for (const char* body : {"", "[]", "{", "null", "{\"model\": \"\xff\"}"}) {
    EXPECT_THAT(ParseCompletion(body).status().message(), HasSubstr("the body is not ")) << body;
  }
  EXPECT_FALSE(ParseCompletion(Completion("\"prompt\": " + std::string(100, '[') + std::string(100, ']'))).ok());
  const absl::Status unknown = ParseCompletion(Completion(R"("temprature": 1)")).status();
  EXPECT_EQ(Json::parse(ErrorJson(400, unknown))["error"]["code"], "unknown_parameter");
}

TEST(ParseChat, TakesMessages) {
  const auto request = ParseChat(
      R"({"model": "m", "messages": [{"role": "developer", "content": "be brief"},
          {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
          {"role": "assistant", "content": "c", "tool_calls": []}, {"role": "user", "content": "d"}],
          "max_completion_tokens": 5, "max_tokens": 5, "logprobs": true, "top_logprobs": 4, "stop": "x",
          "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": true})");
  ASSERT_OK(request);
  EXPECT_TRUE(request->chat);
  EXPECT_EQ(request->messages,
            (std::vector<text::Message>{{"system", "be brief"}, {"user", "ab"}, {"assistant", "c"}, {"user", "d"}}));
  EXPECT_EQ(request->max_tokens, 5);
  EXPECT_EQ(request->task.likeliest, 4);
  EXPECT_EQ(request->task.stop_strings, std::vector<std::string>{"x"});
  const auto plain = ParseChat(Chat());
  ASSERT_OK(plain);
  EXPECT_FALSE(plain->max_tokens.has_value()) << "as long as the context allows";
  EXPECT_FALSE(plain->task.likeliest.has_value());
  EXPECT_EQ(ParseChat(Chat(R"("logprobs": true)"))->task.likeliest, 0);
}

TEST(ParseChat, NamesWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("messages": [])", "messages"},
      {R"("messages": "hi")", "messages"},
      {R"("messages": ["hi"])", "messages"},
      {R"("messages": [{"role": "user"}])", "messages"},
      {R"("messages": [{"content": "a"}])", "messages"},
      {R"("messages": [{"role": "tool", "content": "a"}])", "messages"},
      {R"("messages": [{"role": "user", "content": 1}])", "messages"},
      {R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])", "messages"},
      {R"("messages": [{"role": "user", "content": [1]}])", "messages"},
      {R"("messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}])", "messages"},
      {R"("max_tokens": 0)", "max_tokens"},
      {R"("max_tokens": 4, "max_completion_tokens": 5)", "max_tokens"},
      {R"("logprobs": 1)", "logprobs"},
      {R"("top_logprobs": 1)", "top_logprobs"},
      {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs"},
      {R"("tools": [{}])", "tools"},
      {R"("tool_choice": "required")", "tool_choice"},
      {R"("response_format": {"type": "json_object"})", "response_format"},
      {R"("modalities": ["audio"])", "modalities"},
      {R"("prompt": "p")", "prompt"},
      {R"("echo": true)", "echo"},
  };
  for (const auto& [more, parameter] : cases) {
    const absl::Status status = ParseChat(Chat(more)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << more << ": " << status;
    EXPECT_EQ(ParameterOf(status), parameter) << more << ": " << status;
  }
}

TEST(ParseEmbeddings, TakesInputsAndFormats) {
  const auto floats = ParseEmbeddings(Embeddings(R"("input": ["a", "b"], "encoding_format": "float")"));
  ASSERT_OK(floats);
  EXPECT_EQ(floats->inputs, (std::vector<Input>{"a", "b"}));
  EXPECT_FALSE(floats->base64);
  const auto base64 = ParseEmbeddings(Embeddings(R"("input": [1, 2], "encoding_format": "base64", "dimensions": 4)"));
  ASSERT_OK(base64);
  EXPECT_EQ(base64->inputs, (std::vector<Input>{std::vector<uint32_t>{1, 2}}));
  EXPECT_TRUE(base64->base64);
  EXPECT_EQ(base64->dimensions, 4);
  EXPECT_EQ(ParameterOf(ParseEmbeddings(Embeddings(R"("input": 1)")).status()), "input");
  EXPECT_EQ(ParameterOf(ParseEmbeddings(Embeddings(R"("input": "a", "encoding_format": "x")")).status()),
            "encoding_format");
  EXPECT_EQ(ParameterOf(ParseEmbeddings(Embeddings(R"("input": "a", "n": 2)")).status()), "n");
}

TEST(EmbeddingsJson, GivesTheSameNumbersInBothFormats) {
  const std::vector<std::vector<float>> embeddings = {{0.1f, -2.5f}, {3e-20f, 4.0f}};
  const Json floats = Json::parse(EmbeddingsJson("m", embeddings, false, 9));
  const Json base64 = Json::parse(EmbeddingsJson("m", embeddings, true, 9));
  EXPECT_EQ(floats["usage"], (Json{{"prompt_tokens", 9}, {"total_tokens", 9}}));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(floats["data"][i]["index"], i);
    EXPECT_EQ(floats["data"][i]["embedding"].get<std::vector<float>>(), embeddings[i]);
    std::string bytes;
    ASSERT_TRUE(absl::Base64Unescape(base64["data"][i]["embedding"].get<std::string>(), &bytes));
    ASSERT_EQ(bytes.size(), 8u);
    EXPECT_EQ(std::memcmp(bytes.data(), embeddings[i].data(), 8), 0);
  }
}

TEST(ReplyWriter, TellsOffsetsAndNamesOfTokens) {
  // Bytes as tokens: a character of two of them.
  text::BpeTraining training;
  training.vocab_size = 257;
  const auto tokenizer = text::TrainBpe(training, [](const auto& each) { return each("x"); });
  ASSERT_OK(tokenizer);
  std::vector<uint32_t> ids;
  ASSERT_OK((*tokenizer)->EncodeOrdinary("a\u00e9b", &ids));
  ASSERT_EQ(ids.size(), 4u);
  Choice choice = {.index = 0, .text = "a\u00e9b", .ending = Ending::kStop};
  choice.tokens.push_back({*(*tokenizer)->end_of_text(), std::nullopt, {}});
  choice.silent = 1;
  for (const uint32_t id : ids) choice.tokens.push_back({id, -0.5f, {{ids[0], -0.25f}}});
  ReplyWriter writer({.id = "i", .model = "m", .log_probabilities = true}, tokenizer->get());
  const Json reply = Json::parse(writer.Whole({choice}, {.prompt_tokens = 1, .drawn_tokens = 4}));
  const Json& log_probabilities = reply["choices"][0]["logprobs"];
  EXPECT_EQ(log_probabilities["tokens"], (Json{"<|endoftext|>", "a", "bytes:\\xc3", "bytes:\\xa9", "b"}));
  EXPECT_EQ(log_probabilities["text_offset"], (Json{0, 0, 1, 1, 2}));
  EXPECT_EQ(log_probabilities["token_logprobs"], (Json{nullptr, -0.5, -0.5, -0.5, -0.5}));
  EXPECT_EQ(log_probabilities["top_logprobs"][0], nullptr);
  EXPECT_EQ(log_probabilities["top_logprobs"][1], (Json{{"a", -0.25}}));
  EXPECT_EQ(log_probabilities["top_logprobs"][4], (Json{{"a", -0.25}, {"b", -0.5}}));
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(reply["usage"], (Json{{"prompt_tokens", 1}, {"completion_tokens", 4}, {"total_tokens", 5}}));
}

}  // namespace
}  // namespace millrace::serve
