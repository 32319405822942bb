#include "common/grpc_channel.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/grpc_server.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {
namespace {

// A name server for one name, written after RFC 1035: answers every question of type A with the present address, and
// any other with nothing.
class NameServer {
 public:
  explicit NameServer(const char* address) : address_(inet_addr(address)), socket_(socket(AF_INET, SOCK_DGRAM, 0)) {
    sockaddr_in at = {};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(socket_, reinterpret_cast<const sockaddr*>(&at), sizeof(at)), 0);
    socklen_t size = sizeof(at);
    EXPECT_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~NameServer() {
    ended_ = true;
    thread_.join();
    close(socket_);
  }

  int port() const { return port_; }
  void Move(const char* address) { address_ = inet_addr(address); }

 private:
  void Serve() {
    while (!ended_) {
      pollfd readable = {.fd = socket_, .events = POLLIN, .revents = 0};
      if (poll(&readable, 1, 50) != 1) continue;
      char bytes[512];
      sockaddr_in from = {};
      socklen_t size = sizeof(from);
      const ssize_t got = recvfrom(socket_, bytes, sizeof(bytes), 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (got < 17) continue;
      // Header (12 bytes), then the name as labels up to an empty one, the type and the class.
      const std::string asked(bytes, static_cast<size_t>(got));
      const size_t end = asked.find('\0', 12);
      if (end == std::string::npos || end + 5 > asked.size()) continue;
      const std::string question = asked.substr(12, end + 5 - 12);
      const bool is_a = question[question.size() - 3] == 1;
      std::string answer = asked.substr(0, 2) + std::string("\x81\x80\0\1\0", 5) + std::string(1, is_a ? 1 : 0) +
                           std::string(4, '\0') + question;
      if (is_a) {
        const in_addr_t address = address_;
        char raw[sizeof(address)];
        std::memcpy(raw, &address, sizeof(raw));
        // The name as a pointer to the question's, type A, class IN, no time to live, four bytes.
        answer += std::string("\xc0\x0c\0\1\0\1\0\0\0\0\0\4", 12) + std::string(raw, sizeof(raw));
      }
      sendto(socket_, answer.data(), answer.size(), 0, reinterpret_cast<const sockaddr*>(&from), size);
    }
  }

  std::atomic<in_addr_t> address_;
  const int socket_;
  int port_ = 0;
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

std::unique_ptr<GrpcServer> Serve(const std::string& listen) {
  GrpcServerOptions options;
  options.listen = listen;
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(options);
  EXPECT_OK(server);
  return server.ok() ? *std::move(server) : nullptr;
}

bool AwaitConnection(grpc::Channel* channel, absl::Duration patience) {
  return channel->WaitForConnected(absl::ToChronoTime(absl::Now() + patience));
}

// As a pod's that is started anew on another node.
TEST(GrpcChannel, FollowsANameToItsNewAddress) {
  NameServer names("127.0.0.1");
  std::unique_ptr<GrpcServer> server = Serve("127.0.0.1:0");
  ASSERT_NE(server, nullptr);
  const std::string port = server->address().substr(server->address().rfind(':') + 1);
  const std::shared_ptr<grpc::Channel> channel =
      NewChannel(absl::StrCat("dns://127.0.0.1:", names.port(), "/moving.millrace.test:", port));
  ASSERT_TRUE(AwaitConnection(channel.get(), absl::Seconds(20)));

  server.reset();
  names.Move("127.0.0.2");
  server = Serve(absl::StrCat("127.0.0.2:", port));
  ASSERT_NE(server, nullptr);
  while (channel->GetState(true) == GRPC_CHANNEL_READY) {
    ASSERT_TRUE(channel->WaitForStateChange(GRPC_CHANNEL_READY, absl::ToChronoTime(absl::Now() + absl::Seconds(20))));
  }
  // gRPC's own pause between questions for a name is 30 s.
  EXPECT_TRUE(AwaitConnection(channel.get(), absl::Seconds(15)));
}

}  // namespace
}  // namespace millrace
