// Trains a small job with the real command line, serves the model with it, and asks over HTTP: plain bytes, clients
// that hang, and OpenAI's own client.
//
//   serve_command_test MILLRACE CLIENT_FOLDER INSTALL_FOLDER
//     CLIENT_FOLDER     openai_client/: which client, and a script that asks with it
//     INSTALL_FOLDER    where it is installed to
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/http_exchange.h"
#include "testing/status.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Connection;
using testing::Exchange;
using ::testing::HasSubstr;
using testing::PostBytes;
using ::testing::StartsWith;
using Json = nlohmann::json;

std::string* millrace = new std::string;
std::string* client_folder = new std::string;
std::string* install_folder = new std::string;

std::string ReadAll(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void WriteAll(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A server of the model, from its start to its end by SIGTERM.
class Serving {
 public:
  // `log`: a new file.
  Serving(const std::vector<std::string>& arguments, const fs::path& log) : log_(log) {
    ChildProcess::Options options;
    options.arguments = {*millrace, "serve", "--port", "0"};
    options.arguments.insert(options.arguments.end(), arguments.begin(), arguments.end());
    options.log_file = log.string();
    auto child = ChildProcess::Start(options);
    EXPECT_OK(child);
    child_ = *std::move(child);
    constexpr char kAt[] = " at http://";
    for (size_t at = std::string::npos; at == std::string::npos && child_->running();) {
      const std::string text = ReadAll(log_);
      at = text.find(kAt);
      if (at == std::string::npos || text.find('\n', at) == std::string::npos) {
        at = std::string::npos;
        child_->Wait(absl::Now() + absl::Milliseconds(20));
        continue;
      }
      address_ = text.substr(at + sizeof(kAt) - 1, text.find('\n', at) - at - sizeof(kAt) + 1);
    }
    EXPECT_FALSE(address_.empty()) << ReadAll(log_);
  }
  // Ends it, and checks that it ends well.
  ~Serving() {
    AskToEnd();
    const auto ending = child_->Wait(absl::Now() + absl::Seconds(60));
    EXPECT_TRUE(ending.has_value() && ending->well()) << ReadAll(log_);
  }

  const std::string& address() const { return address_; }
  // The second time the signal would end it at once.
  void AskToEnd() {
    if (!asked_) child_->Signal(SIGTERM);
    asked_ = true;
  }

 private:
  const fs::path log_;
  std::unique_ptr<ChildProcess> child_;
  std::string address_;
  bool asked_ = false;
};

class ServeCommand : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    char pattern[] = "/tmp/millrace-serve-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    work_ = new fs::path(pattern);
    std::string text;
    uint64_t state = 1;
    for (int i = 0; i < 3000; ++i) {
      const auto draw = [&state](const std::vector<std::string>& words) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return words[(state >> 33) % words.size()];
      };
      text += absl::StrCat(draw({"Today", "Monday", "Friday"}), " ", draw({"is", "was"}), " a ",
                           draw({"sunny", "rainy", "sch\u00f6n", "cold"}), " ", draw({"day", "morning"}), ".\n");
    }
    WriteAll(*work_ / "days.txt", text);
    WriteAll(*work_ / "days.yaml", R"(
name: days
seed: 3
data: {sources: [{path: days.txt}], clean: {dedup: none}, held_out: 0.05, split: {order: file}}
tokenizer: {type: bpe, vocab_size: 280}
model: {family: llama, layers: 2, hidden_size: 32, heads: 2, context: 64}
phases:
  - name: pretrain
    global_batch: 8
    optimizer: {type: adamw, lr: 1.0e-2, schedule: linear, warmup_steps: 10}
    evaluate: {every_steps: 60}
    stop: {max_steps: 60}
)");
    ASSERT_EQ(Run(absl::StrCat("train ", (*work_ / "days.yaml").string(), " --workers 1 --shards 1 --dir ",
                               (*work_ / "cluster").string()))
                  .first,
              0);
    model_ = new std::string((*work_ / "days").string());
    ASSERT_EQ(Run(absl::StrCat("export --format hf --out ", *model_, " --model ",
                               (*work_ / "cluster/jobs/days/checkpoints/best").string()))
                  .first,
              0);
    WriteAll(fs::path(*model_) / "chat_template.jinja",
             "{%- for message in messages -%}{{ message.role + ': ' + message.content }}"
             "{%- if message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}");
  }
  static void TearDownTestSuite() { fs::remove_all(*work_); }

  // The status, and standard output; standard error is shown where the status is not 0.
  static std::pair<int, std::string> Run(const std::string& arguments) {
    const std::string out = (*work_ / "out").string(), err = (*work_ / "err").string();
    const int status = std::system(absl::StrCat(*millrace, " ", arguments, " </dev/null >", out, " 2>", err).c_str());
    if (status != 0) std::fputs(ReadAll(err).c_str(), stderr);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, ReadAll(out)};
  }

  static std::unique_ptr<Serving> Start(std::vector<std::string> arguments = {}) {
    static int count = 0;
    arguments.insert(arguments.begin(), {"--model", *model_});
    return std::make_unique<Serving>(arguments, *work_ / absl::StrCat("serve-", ++count, ".log"));
  }

  static Json Post(const Serving& server, const std::string& path, const Json& body) {
    const std::string reply = Exchange(server.address(), PostBytes(path, body.dump()));
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 ")) << body;
    return Json::parse(reply.substr(reply.find("\r\n\r\n") + 4), nullptr, false);
  }

  static fs::path* work_;
  static std::string* model_;
};

fs::path* ServeCommand::work_ = nullptr;
std::string* ServeCommand::model_ = nullptr;

TEST_F(ServeCommand, EchoedPromptsHaveTheLogProbabilitiesOfScore) {
  const auto server = Start({"--prompt-tokens", "5"});
  const std::string text = "Monday was a sch\u00f6n day.\nToday is a cold";
  const auto [status, out] = Run(absl::StrCat("score --json --model ", *model_, " --text '", text, "'"));
  ASSERT_EQ(status, 0);
  const Json score = Json::parse(out);
  std::vector<uint32_t> ids = {0};  // <|endoftext|>
  Json expected = {nullptr};
  for (const Json& token : score["tokens"]) {
    ids.push_back(token["id"]);
    expected.push_back(token["log_probability"]);
  }
  for (const int max_tokens : {0, 1}) {
    for (const Json& prompt : {Json(text), Json(ids), Json{ids}}) {
      Json reply =
          Post(*server, "/v1/completions",
               {{"model", "days"}, {"prompt", prompt}, {"max_tokens", max_tokens}, {"echo", true}, {"logprobs", 1}});
      Json& log_probabilities = reply["choices"][0]["logprobs"];
      Json& numbers = log_probabilities["token_logprobs"];
      ASSERT_EQ(numbers.size(), ids.size() + max_tokens) << reply;
      if (max_tokens == 1) numbers.erase(numbers.size() - 1);
      EXPECT_EQ(numbers, expected) << "to the last bit";
      // As lm-evaluation-harness looks whether the text is what the model would say.
      for (size_t i = 1; i < ids.size(); ++i) {
        double largest = -1e30;
        for (const auto& [name, number] : log_probabilities["top_logprobs"][i].items()) {
          largest = std::max(largest, number.get<double>());
        }
        EXPECT_GE(largest, numbers[i].get<double>());
      }
    }
  }
}

TEST_F(ServeCommand, AnswersAreThoseOfGenerate) {
  const auto server = Start();
  const auto [status, out] = Run(absl::StrCat("generate --json --model ", *model_,
                                              " --prompt 'Today' --seed 5 --temperature 0.9 --max-tokens 30"));
  ASSERT_EQ(status, 0);
  const Json generated = Json::parse(out);
  const Json reply =
      Post(*server, "/v1/completions",
           {{"model", "days"}, {"prompt", "Today"}, {"seed", 5}, {"temperature", 0.9}, {"max_tokens", 30}});
  EXPECT_EQ(reply["choices"][0]["text"], generated["text"]);
  const auto [embedded, vector] = Run(absl::StrCat("embed --json --model ", *model_, " --text 'Today'"));
  ASSERT_EQ(embedded, 0);
  EXPECT_EQ(Post(*server, "/v1/embeddings", {{"model", "days"}, {"input", "Today"}})["data"][0]["embedding"],
            Json::parse(vector)["embedding"]);
}

TEST_F(ServeCommand, WhoHangsDisturbsNobody) {
  const auto server = Start({"--sequences", "4", "--queue", "8", "--patience", "1"});
  const Json body = {{"model", "days"}, {"prompt", "Today is"}, {"seed", 1}, {"max_tokens", 40}};
  const Json alone = Post(*server, "/v1/completions", body)["choices"];
  // Some begin a request and say no more, some ask for much and do not read, some hang up in the middle.
  std::vector<std::unique_ptr<Connection>> hanging;
  Json much = body;
  much.update({{"n", 8}, {"stream", true}, {"logprobs", 20}});
  for (int i = 0; i < 6; ++i) {
    hanging.push_back(std::make_unique<Connection>(server->address()));
    hanging.back()->Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{");
  }
  for (int i = 0; i < 2; ++i) {
    hanging.push_back(std::make_unique<Connection>(server->address()));
    hanging.back()->Send(PostBytes("/v1/completions", much.dump()));
    Connection gone(server->address());
    gone.Send(PostBytes("/v1/completions", much.dump()));
    gone.ReadUntil("data: ");
  }
  std::vector<std::thread> clients;
  std::vector<Json> replies(8);
  for (Json& reply : replies) {
    clients.emplace_back([&] {
      std::string bytes;
      do {  // as a client does that is told to come again
        bytes = Exchange(server->address(), PostBytes("/v1/completions", body.dump()));
      } while (absl::StartsWith(bytes, "HTTP/1.1 429 "));
      reply = Json::parse(bytes.substr(bytes.find("\r\n\r\n") + 4), nullptr, false);
    });
  }
  for (std::thread& client : clients) client.join();
  for (const Json& reply : replies) EXPECT_EQ(reply["choices"], alone) << "no request is lost, none is changed";
}

TEST_F(ServeCommand, FinishesWhatRunsBeforeItEnds) {
  const auto server = Start({"--sequences", "1"});
  Connection connection(server->address());
  const Json body = {{"model", "days"}, {"prompt", "Today"}, {"n", 100}, {"max_tokens", 60}, {"stream", true}};
  connection.Send(PostBytes("/v1/completions", body.dump()));
  EXPECT_THAT(connection.ReadUntil("data: "), AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("text/event-stream")));
  server->AskToEnd();
  EXPECT_THAT(connection.ReadAll(), HasSubstr("data: [DONE]\n\n\r\n0\r\n\r\n"));
  EXPECT_EQ(Run(absl::StrCat("serve --model ", *model_, " --model ", *model_)).first, 1) << "two of one name";
}

TEST_F(ServeCommand, GuardsWithAToken) {
  WriteAll(*work_ / "token", "0123456789abcdef\n");
  const auto server = Start({"--api-token-file", (*work_ / "token").string()});
  const std::string get = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n";
  EXPECT_THAT(Exchange(server->address(), get + "\r\n"), StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Exchange(server->address(), get + "Authorization: Bearer 0123456789abcdef\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("\"id\":\"days\"")));
}

TEST_F(ServeCommand, OpenAisClientIsContent) {
  if (std::system("node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "SKIPPED: there is no node or no npm to run OpenAI's client with; `apt-get install nodejs npm`";
  }
  std::error_code error;
  fs::create_directories(*install_folder, error);
  for (const char* file : {"package.json", "package-lock.json", "ask.mjs"}) {
    fs::copy_file(fs::path(*client_folder) / file, fs::path(*install_folder) / file,
                  fs::copy_options::overwrite_existing, error);
    ASSERT_FALSE(error) << file << ": " << error.message();
  }
  const std::string in_folder = absl::StrCat("cd '", *install_folder, "' && ");
  // What is installed already needs no registry.
  if (std::system((in_folder + "npm ls >/dev/null 2>&1").c_str()) != 0 &&
      std::system((in_folder + "npm ci --no-audit --no-fund --ignore-scripts >npm.log 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "SKIPPED: OpenAI's client cannot be installed from its registry:\n"
                 << ReadAll(fs::path(*install_folder) / "npm.log");
  }
  WriteAll(*work_ / "token", "0123456789abcdef\n");
  const auto server = Start({"--api-token-file", (*work_ / "token").string(), "--sequences", "3"});
  const std::string log = (*work_ / "ask.log").string();
  const int status = std::system(
      absl::StrCat(in_folder, "node ask.mjs http://", server->address(), "/v1 0123456789abcdef >'", log, "' 2>&1")
          .c_str());
  EXPECT_EQ(status, 0) << ReadAll(log);
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 4) {
    std::fprintf(stderr, "usage: serve_command_test MILLRACE CLIENT_FOLDER INSTALL_FOLDER\n");
    return 2;
  }
  *millrace::millrace = argv[1];
  *millrace::client_folder = argv[2];
  *millrace::install_folder = argv[3];
  return RUN_ALL_TESTS();
}
