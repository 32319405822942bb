// Makes the connections to other processes of the cluster.
#pragma once

#include <memory>
#include <string>
#include <utility>

namespace grpc {
class Channel;
class ChannelCredentials;
}  // namespace grpc

namespace millrace {

// Messages above this are refused on both sides.
inline constexpr int kMaxMessageBytes = 64 << 20;

// Keeps gRPC's library up until the process ends. Left alone it goes down with its last object, and may first wait 10 s
// for a thread of its own that polls. Called by whatever makes a channel or a server.
void KeepGrpc();

// Where a server is, and how it is spoken to.
struct Endpoint {
  Endpoint() = default;
  // NOLINTBEGIN(google-explicit-constructor): an address alone is one in plain TCP.
  Endpoint(std::string address, std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr)
      : address(std::move(address)), credentials(std::move(credentials)) {}
  Endpoint(const char* address) : address(address) {}
  // NOLINTEND(google-explicit-constructor)

  std::string address;                                    // HOST:PORT
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: plain TCP
};

// A connection of its own to HOST:PORT (equal channels would share one: a bulk transfer would hold heartbeats up). It
// is made on first use, and again soon after it broke, to wherever the name leads then; a peer that answers no ping for
// some seconds counts as broken. Without credentials it is plain TCP.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);
inline std::shared_ptr<grpc::Channel> NewChannel(const Endpoint& endpoint) {
  return NewChannel(endpoint.address, endpoint.credentials);
}

// Why TLS came to nothing when the channel last tried to connect; empty if it has connected or failed for another
// reason. Takes no longer than a moment.
std::string HandshakeTrouble(const std::shared_ptr<grpc::Channel>& channel);

}  // namespace millrace
