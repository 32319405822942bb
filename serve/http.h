// Serves models over HTTP as OpenAI's API does, and what it counts to Prometheus (docs/serving.md).
//
//   POST /v1/completions, /v1/chat/completions, /v1/embeddings
//   GET  /v1/models, /v1/models/NAME, /health, /metrics
//
// Each request has a thread of its own for as long as it is under way, which alone waits for its client. A client that
// hangs up, or takes nothing for `patience`, loses what was made for it; nobody else notices.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/http_server.h"
#include "common/metrics.h"
#include "serve/engine.h"
#include "serve/served_model.h"

namespace millrace::serve {

struct ServerOptions {
  std::string listen;  // HOST:PORT; port 0: any
  // What "Authorization: Bearer" must bring, but for /health. Empty: nothing, and at a loopback address only requests
  // to this machine's own names are answered, so that a page of another site cannot ask.
  std::string token;
  absl::Duration patience = absl::Seconds(30);  // with a client that takes or sends nothing
  uint64_t first_seed = 0;                      // of requests that bring no seed; should differ from start to start
  std::function<absl::Time()> now = &absl::Now;
  EngineOptions engine;  // of each model
};

class Server {
 public:
  // At least one model; their names differ. INVALID_ARGUMENT if they do not, and the errors of Engine::Start and
  // HttpServer::Start. `metrics` outlives the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<ServedModel>& models, Metrics* metrics);
  // Gives up what is under way: Drain first.
  ~Server();

  // HOST:PORT, as bound.
  const std::string& address() const;
  // Refuses new requests and returns once those under way were answered.
  void Drain();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace millrace::serve
