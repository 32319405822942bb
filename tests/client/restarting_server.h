// A gRPC server that can go and come back at the same address.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "common/grpc_server.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::client {

class RestartingServer {
 public:
  // The service must outlive this.
  explicit RestartingServer(grpc::Service* service) : service_(service) {
    Start();
    if (server_ != nullptr) address_ = server_->address();
  }
  const std::string& address() const { return address_; }
  // Cancels the calls in flight.
  void Stop() { server_.reset(); }
  void Start() {
    auto server = GrpcServer::Start({.listen = address_, .services = {service_}});
    ASSERT_OK(server);
    server_ = *std::move(server);
  }

 private:
  grpc::Service* const service_;
  std::string address_ = "127.0.0.1:0";
  std::unique_ptr<GrpcServer> server_;
};

}  // namespace millrace::client
