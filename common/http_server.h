// Serves small HTTP requests to browsers and programs: whole bodies in; whole bodies or pieces of them out.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

struct HttpRequest {
  std::string method;         // GET, POST, …
  std::string path;           // decoded, without "..", as in "/api/v1/x"
  std::string query;          // what follows '?', as sent
  std::string authorization;  // headers of these names; empty if absent
  std::string content_type;
  std::string host;
  std::string peer;  // who asks: "10.0.0.7:51234", "[::1]:51234"
  std::string body;
  // Whether who asks has hung up, so that nobody waits for the answer. May be called until that is sent, by one thread.
  std::function<bool()> gone;

  // Decodes the query's parameter `name`; empty if it is absent or longer than 1 KiB.
  std::string Parameter(const char* name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type;
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // further ones
  // Instead of `body`: called once the headers are sent, to send the body in pieces as they come to be, each at once.
  // `send` returns false once the client has hung up or has taken nothing for the server's patience.
  using Send = std::function<bool(absl::string_view piece)>;
  std::function<void(const Send& send)> pieces;
};

struct HttpServerOptions {
  std::string listen;         // HOST:PORT; port 0: any
  size_t max_body_bytes = 0;  // a request with a larger body is not read
  int threads = 8;            // requests that are under way at a time; others wait
  // Who is silent for longer loses the connection, and who takes longer in all for the headers, or than this and a
  // second for each 64 KiB for the body.
  absl::Duration patience = absl::Seconds(10);
  // Called by several threads at once.
  std::function<HttpResponse(const HttpRequest&)> answer;
  // The answer to a request that is refused before `answer` sees it: 400 or 408 for a body that does not come, 411
  // without a length, 413 with a larger body, 503 after Drain.
  std::function<HttpResponse(int status, absl::string_view why)> refuse;
};

// Whether a request's Host is this machine by its address or its own name. A name of somebody else's that leads here is
// that of a page that wants to be taken for ours (DNS rebinding): where nobody has to bring a token, and only this
// machine is served, no other host is answered.
bool NamesThisMachine(absl::string_view host);

// One connection a request.
class HttpServer {
 public:
  // INVALID_ARGUMENT if `listen` is no HOST:PORT; UNAVAILABLE naming it if it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options);
  // Takes no new requests and returns when those in flight were answered, within two seconds if there are none: so
  // often does the library look.
  ~HttpServer();

  // Refuses new requests and returns when those in flight were answered, or had no patience.
  void Drain();

  // As bound: the host that was asked for and the port that was given.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
  std::string address_;
};

}  // namespace millrace
