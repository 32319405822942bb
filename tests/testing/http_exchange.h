// Speaks HTTP as plain bytes, independently of the library that serves it.
#pragma once

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace millrace::testing {

// A connection to HOST:PORT; without one, if nobody listens there, nothing is sent or comes.
class Connection {
 public:
  explicit Connection(const std::string& address) {
    const size_t colon = address.rfind(':');
    addrinfo hints = {};
    hints.ai_family = AF_INET;
    addrinfo* found = nullptr;
    if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
      ADD_FAILURE() << address << " is no address";
      return;
    }
    descriptor_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    open_ = connect(descriptor_, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
  }
  ~Connection() { close(descriptor_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Send(const std::string& bytes) {
    for (size_t done = 0; open_ && done < bytes.size();) {
      const ssize_t sent = send(descriptor_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      open_ = sent > 0;
      if (open_) done += static_cast<size_t>(sent);
    }
  }
  // Whether something comes, or the connection is closed, within the time.
  bool AwaitBytes(absl::Duration time) const {
    pollfd wanted = {descriptor_, POLLIN, 0};
    return poll(&wanted, 1, static_cast<int>(absl::ToInt64Milliseconds(time))) != 0;
  }
  // What comes up to and with `end`, or until the connection is closed.
  std::string ReadUntil(const std::string& end) {
    size_t at;
    while ((at = came_.find(end)) == std::string::npos && Receive()) {
    }
    std::string bytes = came_.substr(0, at == std::string::npos ? at : at + end.size());
    came_.erase(0, bytes.size());
    return bytes;
  }
  std::string ReadAll() {
    while (Receive()) {
    }
    return std::exchange(came_, std::string());
  }

 private:
  bool Receive() {
    char buffer[4096];
    const ssize_t got = open_ ? recv(descriptor_, buffer, sizeof(buffer), 0) : 0;
    if (got > 0) came_.append(buffer, static_cast<size_t>(got));
    return got > 0;
  }

  int descriptor_ = -1;
  bool open_ = false;
  std::string came_;
};

// Sends bytes over a connection of its own and returns all that comes until it is closed.
inline std::string Exchange(const std::string& address, const std::string& bytes) {
  Connection connection(address);
  connection.Send(bytes);
  return connection.ReadAll();
}

// A POST of JSON; `headers` are whole lines.
inline std::string PostBytes(const std::string& path, const std::string& json, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(json.size()) + "\r\n\r\n" + json;
}

}  // namespace millrace::testing
