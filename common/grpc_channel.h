// Makes the connections to other processes of the cluster.
#pragma once

#include <memory>
#include <string>

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

// A connection of its own to HOST:PORT (equal channels would share one: a bulk transfer would hold heartbeats up). It
// is made on first use, and again soon after it broke; a peer that answers no ping for some seconds counts as broken.
// Without credentials it is plain TCP.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

}  // namespace millrace
