// What clients get of a server, with continuous batching against one request at a time.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "common/metrics.h"
#include "common/status.h"
#include "model/arena.h"
#include "model/families/network.h"
#include "model/tensor_list.h"
#include "serve/http.h"
#include "text/tokenizer.h"

namespace millrace::bench {
namespace {

constexpr int kClients[] = {1, 4, 16, 64};
constexpr int64_t kSeats = 64;
constexpr int64_t kPromptTokens = 16, kTokens = 32;  // of a request
constexpr int kRequestsOfEach = 2, kLeastRequests = 16;

// What the clients saw.
struct Seen {
  double seconds = 0;
  double first_token_ms = 0;  // the median
};

// Asks for a stream and reads it to its end; the time to the first event, or nullopt if it did not come whole.
std::optional<absl::Duration> Ask(uint16_t port, const std::string& request) {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const absl::Time begun = absl::Now();
  absl::Duration first;
  std::string reply;
  if (connect(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
      send(descriptor, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[1 << 14];
    for (ssize_t got; (got = recv(descriptor, buffer, sizeof(buffer), 0)) > 0;) {
      reply.append(buffer, static_cast<size_t>(got));
      if (first == absl::ZeroDuration() && reply.find("\ndata: ") != std::string::npos) first = absl::Now() - begun;
    }
  }
  close(descriptor);
  if (reply.find("data: [DONE]") == std::string::npos) return std::nullopt;
  return first;
}

absl::StatusOr<Seen> AskTogether(uint16_t port, int clients, int requests, int64_t vocab) {
  std::atomic<int> next = 0, lost = 0;
  std::vector<std::vector<double>> first_tokens(static_cast<size_t>(clients));
  std::vector<std::thread> threads;
  const absl::Time begun = absl::Now();
  for (std::vector<double>& of_client : first_tokens) {
    threads.emplace_back([&] {
      for (int number; (number = next++) < requests;) {
        std::string ids;
        for (int64_t i = 0; i < kPromptTokens; ++i) absl::StrAppend(&ids, i == 0 ? "" : ",", (number * 7 + i) % vocab);
        const std::string body = absl::StrCat(R"({"model":"m","stream":true,"max_tokens":)", kTokens, R"(,"seed":)",
                                              number, R"(,"prompt":[)", ids, "]}");
        const std::optional<absl::Duration> first = Ask(
            port, absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               "Content-Length: ",
                               body.size(), "\r\n\r\n", body));
        if (!first.has_value()) {
          ++lost;
        } else {
          of_client.push_back(absl::ToDoubleMilliseconds(*first));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Seen seen = {.seconds = absl::ToDoubleSeconds(absl::Now() - begun)};
  if (lost > 0) return absl::InternalError(absl::StrCat(lost.load(), " requests were lost"));
  std::vector<double> all;
  for (const std::vector<double>& of_client : first_tokens) all.insert(all.end(), of_client.begin(), of_client.end());
  seen.first_token_ms = Median(all);
  return seen;
}

// What `clients` see of a server with so many seats.
absl::StatusOr<Seen> Measure(const serve::ServedModel& served, int64_t seats, int clients, int requests) {
  Metrics metrics;
  serve::ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.engine = {.sequences = seats, .waiting = 4 * kSeats};
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<serve::Server> server,
                            serve::Server::Start(options, {served}, &metrics));
  const std::string& address = server->address();
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) return absl::InternalError(address);
  MILLRACE_RETURN_IF_ERROR(  // warms up
      AskTogether(static_cast<uint16_t>(port), 1, 1, served.network->vocab_size()).status());
  return AskTogether(static_cast<uint16_t>(port), clients, requests, served.network->vocab_size());
}

}  // namespace

absl::Status BenchServing(const Machine& machine, Report* report) {
  const kernels::Compute compute(machine.isa, machine.threads);
  for (const Model& model : {kModels[0], kModels[1]}) {
    for (const kernels::Precision precision : {kernels::Precision::kF32, kernels::Precision::kBf16}) {
      const std::string group = absl::StrCat("serving/", model.name, "/", PrecisionName(precision));
      if (!report->Wants(group)) continue;
      MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(model, "none", precision, 1, 1));
      MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Network> network,
                                model::CreateNetwork(job.model(), static_cast<uint32_t>(model.vocab)));
      MILLRACE_ASSIGN_OR_RETURN(model::Arena memory, model::Arena::Create(network->tensors().floats()));
      float* const weights = memory.Take(network->tensors().floats());
      model::StartWeights(network->tensors(), 1, weights);
      std::string characters;
      for (int i = 0; i < model.vocab; ++i) characters += static_cast<char>('!' + i);
      MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                                text::TrainCharacters([&](const auto& each) { return each(characters); }));
      serve::ServedModel served;
      served.name = "m";
      served.compute = &compute;
      served.network = network.get();
      served.weights = weights;
      served.tokenizer = tokenizer.get();
      for (const int clients : kClients) {
        const std::string name = absl::StrCat(group, "/", clients, clients == 1 ? "-client" : "-clients");
        if (!report->Wants(name)) continue;
        const int requests = std::max(kRequestsOfEach * clients, kLeastRequests);
        MILLRACE_ASSIGN_OR_RETURN(const Seen batched, Measure(served, kSeats, clients, requests));
        MILLRACE_ASSIGN_OR_RETURN(const Seen alone, Measure(served, 1, clients, requests));
        report->Add(
            {absl::StrCat(name, "/requests"), requests / batched.seconds, "requests/s", requests / alone.seconds});
        report->Add({absl::StrCat(name, "/tokens"), static_cast<double>(requests * kTokens) / batched.seconds,
                     "tokens/s", static_cast<double>(requests * kTokens) / alone.seconds});
        report->Add({absl::StrCat(name, "/first-token"), batched.first_token_ms, "ms", alone.first_token_ms});
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace millrace::bench
