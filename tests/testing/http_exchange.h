// Speaks HTTP as plain bytes, independently of the library that serves it.
#pragma once

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"

namespace millrace::testing {

// Sends bytes over a connection of its own to HOST:PORT and returns all that comes until it is closed; nothing if
// nobody listens there.
inline std::string Exchange(const std::string& address, const std::string& bytes) {
  const size_t colon = address.rfind(':');
  addrinfo hints = {};
  hints.ai_family = AF_INET;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
    ADD_FAILURE() << address << " is no address";
    return "";
  }
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::string reply;
  if (connect(descriptor, found->ai_addr, found->ai_addrlen) == 0 &&
      send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size())) {
    char buffer[4096];
    for (ssize_t got; (got = recv(descriptor, buffer, sizeof(buffer), 0)) > 0;) {
      reply.append(buffer, static_cast<size_t>(got));
    }
  }
  freeaddrinfo(found);
  close(descriptor);
  return reply;
}

// A POST of JSON; `headers` are whole lines.
inline std::string PostBytes(const std::string& path, const std::string& json, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(json.size()) + "\r\n\r\n" + json;
}

}  // namespace millrace::testing
