// Serves gRPC services with health checking and reflection.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/access.h"

namespace grpc {
class Server;
class ServerCredentials;
class Service;
}  // namespace grpc

namespace millrace {

class Metrics;

struct GrpcServerOptions {
  std::string listen;                                    // HOST:PORT; port 0: any
  std::string address_file;                              // written with the bound HOST:PORT once serving; empty: none
  std::vector<grpc::Service*> services;                  // outlive the server
  std::shared_ptr<grpc::ServerCredentials> credentials;  // null: plain TCP
  Access* access = nullptr;                              // who may call what; outlives the server; null: all may
  Metrics* metrics = nullptr;                            // told of every call (rpc_metrics.h); outlives the server
};

class GrpcServer {
 public:
  // UNAVAILABLE if the address cannot be bound, naming it. Raises this process' limit of descriptors, and so of
  // connections, as far as it may.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options);
  // Shuts down at once.
  ~GrpcServer();

  // As bound: the host that was asked for and the port that was given.
  const std::string& address() const { return address_; }

  // Takes no new calls, waits `grace` for those in flight, then cancels them; returns when none is left.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(std::unique_ptr<grpc::Server> server, std::string address);
  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
};

}  // namespace millrace
