#include "common/http_server.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/log.h"

namespace millrace {
namespace {

constexpr char kMaxHeaderBytes[] = "16384";
constexpr size_t kMaxParameterBytes = 1 << 10;
// A body that comes more slowly holds a thread for too long.
constexpr double kBodyBytesASecond = 64 << 10;

// Never taken down again: the metrics' endpoint may use the same library.
void KeepCivetweb() {
  static const unsigned features = mg_init_library(0);
  (void)features;
}

absl::string_view Reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 503:
      return "Service Unavailable";
    default:
      return status < 500 ? "Error" : "Internal Server Error";
  }
}

std::string Text(const char* text) { return text == nullptr ? std::string() : std::string(text); }

bool IsHostAndPort(absl::string_view listen) {
  const size_t colon = listen.rfind(':');
  uint32_t port = 0;
  // The library's list of ports has its own signs.
  return colon != absl::string_view::npos && colon > 0 && absl::SimpleAtoi(listen.substr(colon + 1), &port) &&
         port <= 65535 && listen.find_first_of(",+ rsx", colon) == absl::string_view::npos &&
         listen.find_first_of(",+ ") == absl::string_view::npos;
}

bool WriteBytes(mg_connection* connection, absl::string_view bytes) {
  return mg_write(connection, bytes.data(), bytes.size()) == static_cast<int>(bytes.size());
}

void Write(mg_connection* connection, const HttpResponse& response, bool with_body, bool chunks) {
  const bool pieces = response.pieces != nullptr;
  std::string bytes = absl::StrCat("HTTP/1.1 ", response.status, " ", Reason(response.status),
                                   "\r\nContent-Type: ", response.content_type, "\r\nConnection: close\r\n");
  if (!pieces) absl::StrAppend(&bytes, "Content-Length: ", response.body.size(), "\r\n");
  if (pieces && chunks) absl::StrAppend(&bytes, "Transfer-Encoding: chunked\r\n");
  for (const auto& [name, value] : response.headers) absl::StrAppend(&bytes, name, ": ", value, "\r\n");
  absl::StrAppend(&bytes, "\r\n");
  if (with_body) bytes += response.body;
  bool open = WriteBytes(connection, bytes);
  if (!pieces || !with_body) return;
  response.pieces([&](absl::string_view piece) {
    if (!open || piece.empty()) return open;  // an empty chunk would be the last
    if (chunks) {
      open = WriteBytes(connection, absl::StrCat(absl::Hex(piece.size()), "\r\n", piece, "\r\n"));
    } else {
      open = WriteBytes(connection, piece);
    }
    return open;
  });
  if (open && chunks) WriteBytes(connection, "0\r\n\r\n");
}

std::string PeerOf(const mg_request_info& info) {
  const absl::string_view address = info.remote_addr;
  const bool version6 = absl::StrContains(address, ':');
  return absl::StrCat(version6 ? "[" : "", address, version6 ? "]:" : ":", info.remote_port);
}

// The connection's socket, which the library does not tell: the one of this process that is connected to the client.
// -1 if there is none.
int SocketOf(const mg_request_info& info) {
  in6_addr client = {};
  const bool version4 = inet_pton(AF_INET, info.remote_addr, &client) == 1;
  if (!version4 && inet_pton(AF_INET6, info.remote_addr, &client) != 1) return -1;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end; it.increment(error)) {
    int descriptor = -1;
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    if (!absl::SimpleAtoi(it->path().filename().string(), &descriptor) ||
        getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
      continue;
    }
    const auto& of4 = reinterpret_cast<const sockaddr_in&>(peer);
    const auto& of6 = reinterpret_cast<const sockaddr_in6&>(peer);
    const bool same = version4 ? peer.ss_family == AF_INET && ntohs(of4.sin_port) == info.remote_port &&
                                     std::memcmp(&of4.sin_addr, &client, sizeof(of4.sin_addr)) == 0
                               : peer.ss_family == AF_INET6 && ntohs(of6.sin6_port) == info.remote_port &&
                                     std::memcmp(&of6.sin6_addr, &client, sizeof(of6.sin6_addr)) == 0;
    if (same) return descriptor;
  }
  return -1;
}

// How many bytes have come that nobody has read.
size_t Waiting(int socket) {
  int bytes = 0;
  return ioctl(socket, FIONREAD, &bytes) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

// Whether the other end has closed a connection from which nothing more is to be read.
bool HasHungUp(int socket) {
  char byte = 0;
  const ssize_t got = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

}  // namespace

struct HttpServer::Impl {
  HttpServerOptions options;
  mg_context* context = nullptr;
  absl::Mutex mutex;
  std::string said ABSL_GUARDED_BY(mutex);  // the library's last complaint
  bool draining ABSL_GUARDED_BY(mutex) = false;
  int in_flight ABSL_GUARDED_BY(mutex) = 0;
  absl::CondVar idle;

  // Whether the request may be answered; Leave is to follow either way.
  bool Enter() {
    absl::MutexLock lock(&mutex);
    ++in_flight;
    return !draining;
  }
  void Leave() {
    absl::MutexLock lock(&mutex);
    if (--in_flight == 0) idle.SignalAll();
  }

  HttpResponse Answer(mg_connection* connection, const mg_request_info& info) const {
    HttpRequest request;
    request.method = Text(info.request_method);
    request.path = Text(info.local_uri);
    request.query = Text(info.query_string);
    request.authorization = Text(mg_get_header(connection, "Authorization"));
    request.content_type = Text(mg_get_header(connection, "Content-Type"));
    request.host = Text(mg_get_header(connection, "Host"));
    request.peer = PeerOf(info);
    if (mg_get_header(connection, "Transfer-Encoding") != nullptr ||
        (request.method == "POST" && info.content_length < 0)) {
      return options.refuse(411, "a request with a body needs a Content-Length");
    }
    const auto size = static_cast<uint64_t>(std::max(info.content_length, 0LL));
    if (size > options.max_body_bytes) {
      return options.refuse(413, absl::StrCat("the body has ", size, " bytes; at most ", options.max_body_bytes));
    }
    const absl::Time deadline =
        absl::Now() + options.patience + absl::Seconds(static_cast<double>(size) / kBodyBytesASecond);
    const int socket = SocketOf(info);
    request.body.resize(size);
    for (size_t done = 0; done < size;) {
      // The library would wait for all that is asked for, however slowly it comes.
      const size_t asked = socket < 0 ? size - done : std::min(size - done, std::max<size_t>(1, Waiting(socket)));
      const int got = mg_read(connection, request.body.data() + done, asked);
      if (got <= 0) return options.refuse(400, "the body is shorter than its Content-Length");
      done += static_cast<size_t>(got);
      if (done < size && absl::Now() > deadline) return options.refuse(408, "the body comes too slowly");
    }
    request.gone = [socket] { return socket >= 0 && HasHungUp(socket); };
    return options.answer(request);
  }
};

std::string HttpRequest::Parameter(const char* name) const {
  char value[kMaxParameterBytes + 1];
  const int size = mg_get_var(query.data(), query.size(), name, value, sizeof(value));
  return size <= 0 ? std::string() : std::string(value, static_cast<size_t>(size));
}

bool NamesThisMachine(absl::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon != absl::string_view::npos && !absl::EndsWith(host, "]")) host = host.substr(0, colon);
  if (host == "localhost" || host == "[::1]") return true;
  // An address, not a name that begins like one.
  in_addr address = {};
  return absl::StartsWith(host, "127.") && inet_pton(AF_INET, std::string(host).c_str(), &address) == 1;
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options) {
  if (!IsHostAndPort(options.listen)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot serve HTTP at '", options.listen, "': it is no HOST:PORT, as 127.0.0.1:8080"));
  }
  KeepCivetweb();
  std::unique_ptr<HttpServer> server(new HttpServer(std::make_unique<Impl>()));
  Impl& impl = *server->impl_;
  impl.options = std::move(options);
  const std::string& listen = impl.options.listen;
  mg_callbacks callbacks = {};
  callbacks.begin_request = [](mg_connection* connection) {
    const mg_request_info& info = *mg_get_request_info(connection);
    Impl& impl = *static_cast<Impl*>(info.user_data);
    const HttpResponse response = impl.Enter()
                                      ? impl.Answer(connection, info)
                                      : impl.options.refuse(503, "the server is about to end and takes no requests");
    Write(connection, response, Text(info.request_method) != "HEAD", Text(info.http_version) == "1.1");
    impl.Leave();
    return response.status;
  };
  callbacks.log_message = [](const mg_connection* connection, const char* message) {
    auto* const impl = static_cast<Impl*>(mg_get_user_data(mg_get_context(connection)));
    Log(Severity::kWarning, "http", {{"error", message}});
    if (impl == nullptr) return 1;
    absl::MutexLock lock(&impl->mutex);
    impl->said = message;
    return 1;
  };
  const std::string threads = absl::StrCat(impl.options.threads);
  const std::string patience_ms = absl::StrCat(absl::ToInt64Milliseconds(impl.options.patience));
  const char* const settings[] = {"listening_ports",
                                  listen.c_str(),
                                  "num_threads",
                                  threads.c_str(),
                                  "request_timeout_ms",
                                  patience_ms.c_str(),
                                  "max_request_size",
                                  kMaxHeaderBytes,
                                  "tcp_nodelay",
                                  "1",
                                  "enable_keep_alive",
                                  "no",
                                  nullptr};
  impl.context = mg_start(&callbacks, &impl, const_cast<const char**>(settings));
  if (impl.context == nullptr) {
    absl::MutexLock lock(&impl.mutex);
    return absl::UnavailableError(
        absl::StrCat("cannot serve HTTP at ", listen, impl.said.empty() ? "" : ": ", impl.said));
  }
  mg_server_port port = {};
  if (mg_get_server_ports(impl.context, 1, &port) != 1) {
    return absl::InternalError(absl::StrCat("cannot tell the port of ", listen));
  }
  server->address_ = absl::StrCat(listen.substr(0, listen.rfind(':') + 1), port.port);
  return server;
}

void HttpServer::Drain() {
  absl::MutexLock lock(&impl_->mutex);
  impl_->draining = true;
  while (impl_->in_flight > 0) impl_->idle.Wait(&impl_->mutex);
}

HttpServer::~HttpServer() {
  if (impl_->context != nullptr) mg_stop(impl_->context);
}

}  // namespace millrace
