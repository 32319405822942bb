// Tells whether a process works and whether it is ready, by gRPC's health protocol (grpc.health.v1), as Kubernetes'
// probes and container health checks ask it.
//
// Not on the address of the role's own service: whoever asks has no certificate, and what is said there is no secret.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace grpc {
class Server;
}  // namespace grpc

namespace millrace {

// The services that a HealthServer knows.
inline constexpr absl::string_view kLive = "live";    // the process answers; never depends on others
inline constexpr absl::string_view kReady = "ready";  // it can do what it is there for

// Thread-safe.
class HealthServer {
 public:
  // Serves plain TCP at HOST:PORT (port 0: any); an empty `listen`: nothing, and nobody is told. Not ready yet.
  // INVALID_ARGUMENT for what is not HOST:PORT, UNAVAILABLE if the address cannot be bound, naming it.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& listen);
  ~HealthServer();

  void SetReady(bool ready);
  // As bound: the host that was asked for and the port that was given; empty if nothing is served.
  const std::string& address() const { return address_; }

 private:
  HealthServer(std::unique_ptr<grpc::Server> server, std::string address);
  const std::unique_ptr<grpc::Server> server_;  // null: nothing is served
  const std::string address_;
};

// Asks the process at HOST:PORT for `service`: OK if it is serving. UNAVAILABLE if it is not, or if nobody answers
// within `patience`; NOT_FOUND if it does not know the service. Errors name the address.
absl::Status CheckHealth(const std::string& address, absl::string_view service, absl::Duration patience);

}  // namespace millrace
