#include "common/health.h"

#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/status.h"

namespace millrace {
namespace {

constexpr int kMaxQuestionBytes = 4096;

// The protocol's two messages, which Debian's gRPC has no headers for:
//   message HealthCheckRequest { string service = 1; }
//   message HealthCheckResponse { ServingStatus status = 1; }   1: SERVING
constexpr char kServiceTag = (1 << 3) | 2, kStatusTag = (1 << 3) | 0;
constexpr char kServing = 1;

grpc::ByteBuffer Question(absl::string_view service) {
  std::string bytes;
  if (!service.empty()) bytes = absl::StrCat(std::string{kServiceTag, static_cast<char>(service.size())}, service);
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

bool IsServing(const grpc::ByteBuffer& answer) {
  std::vector<grpc::Slice> slices;
  if (!answer.Dump(&slices).ok()) return false;
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes == std::string{kStatusTag, kServing};
}

}  // namespace

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const std::string& listen) {
  if (listen.empty()) return std::unique_ptr<HealthServer>(new HealthServer(nullptr, ""));
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--health '", listen, "' is not HOST:PORT, as in 0.0.0.0:7499"));
  }
  KeepGrpc();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kMaxQuestionBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("--health: cannot serve at ", listen, ": the port is taken, or the host is not this machine's"));
  }
  std::string address = absl::StrCat(listen.substr(0, colon), ":", port);
  server->GetHealthCheckService()->SetServingStatus(std::string(kLive), true);
  server->GetHealthCheckService()->SetServingStatus(std::string(kReady), false);
  Log(Severity::kInfo, "tells its health", {{"address", address}});
  return std::unique_ptr<HealthServer>(new HealthServer(std::move(server), std::move(address)));
}

HealthServer::HealthServer(std::unique_ptr<grpc::Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)) {}

HealthServer::~HealthServer() {
  if (server_ == nullptr) return;
  // Not with the server's own grace: a watcher's stream would hold it up.
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
}

void HealthServer::SetReady(bool ready) {
  if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(std::string(kReady), ready);
}

absl::Status CheckHealth(const std::string& address, absl::string_view service, absl::Duration patience) {
  if (service.size() > 127) return absl::InvalidArgumentError("a service's name is 127 bytes at most");
  grpc::GenericStub stub(NewChannel(address));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + patience));
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", Question(service), &queue);
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->StartCall();
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) {
    const absl::Status failed = Annotate(FromGrpc(status), absl::StrCat(address, ", service ", service));
    return absl::IsDeadlineExceeded(failed) ? absl::UnavailableError(failed.message()) : failed;
  }
  if (IsServing(answer)) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(address, ": service ", service, " is not serving"));
}

}  // namespace millrace
