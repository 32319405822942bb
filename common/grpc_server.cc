#include "common/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/rpc_metrics.h"
#include "common/status.h"

namespace millrace {
namespace {

// A connection takes a descriptor, and each worker makes two to the coordinator. The soft limit, mostly 1024, is there
// for programs that call select(2).
void AllowManyDescriptors() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options) {
  static std::once_flag plugins;
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
  KeepGrpc();
  AllowManyDescriptors();
  const size_t colon = options.listen.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", options.listen, "' is not HOST:PORT, as in 127.0.0.1:0"));
  }
  grpc::ServerBuilder builder;
  int port = 0;
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  if (options.access != nullptr) {
    if (options.credentials != nullptr) options.credentials->SetAuthMetadataProcessor(options.access->Processor());
    interceptors = options.access->Interceptors();
  }
  if (options.metrics != nullptr) interceptors.push_back(CountRpcs(options.metrics));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  builder.AddListeningPort(
      options.listen, options.credentials != nullptr ? options.credentials : grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  for (grpc::Service* const service : options.services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve at ", options.listen, ": the port is taken, or the host is not this machine's"));
  }
  std::string address = absl::StrCat(options.listen.substr(0, colon), ":", port);
  if (!options.address_file.empty()) {
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(options.address_file, absl::StrCat(address, "\n")));
  }
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(server), std::move(address)));
}

GrpcServer::GrpcServer(std::unique_ptr<grpc::Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

void GrpcServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

}  // namespace millrace
