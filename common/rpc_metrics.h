// Counts the calls that a gRPC server answers.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "common/metrics.h"

namespace millrace {

// For ServerBuilder::experimental_type::SetInterceptorCreators. Tells `metrics`, which must outlive the server:
//   millrace_rpcs_total{method, code}           calls answered
//   millrace_rpc_duration_seconds{method}       from a call's beginning to its status
// A call whose client goes before there is a status is CANCELLED. Methods are those of the server's services
// ("Jobs/GetJob"); what else clients may ask for is told as one, "other".
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> CountRpcs(Metrics* metrics);

}  // namespace millrace
