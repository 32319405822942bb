// Decides who may call what on a server, and says afterwards who called.
//
// Under TLS each call is checked before any handler sees it, by the table of common/roles.h: a caller is who its
// certificate or its token says. Without TLS everybody is an operator, and every other role as well.
#pragma once

#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/support/server_interceptor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/audit_log.h"
#include "common/handshake_failures.h"
#include "common/metrics.h"
#include "common/roles.h"
#include "common/tokens.h"

namespace grpc {
class ServerContextBase;
}  // namespace grpc

namespace millrace {

struct Caller {
  std::string name;  // of the token, or the certificate's common name
  Role role = Role::kViewer;
};

struct AccessOptions {
  std::unique_ptr<Tokens> tokens;                // null: none is taken
  std::unique_ptr<AuditLog> audit;               // null: nothing is written down
  Metrics* metrics = nullptr;                    // required; outlives the servers
  std::function<absl::Time()> now = &absl::Now;  // by which certificates end
};

class Access {
 public:
  explicit Access(AccessOptions options);
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

  // Who calls over TLS. UNAUTHENTICATED says what is missing. A person's certificate that has ended counts for nothing,
  // also on a connection that was made before; a member's connection goes on until it breaks, as its work would.
  absl::StatusOr<Caller> Identify(const grpc::AuthContext& connection,
                                  const grpc::AuthMetadataProcessor::InputMetadata& metadata);
  // Whether it may. UNAUTHENTICATED or PERMISSION_DENIED with the role, the method and who may. `peer`: where the call
  // comes from, for the audit log; empty: not known.
  absl::Status Check(absl::string_view method, const grpc::AuthContext& connection,
                     const grpc::AuthMetadataProcessor::InputMetadata& metadata, const std::string& peer = "");

  // The same for requests over HTTP, by the token alone. What they change is written down by Record.
  bool takes_tokens() const { return tokens_ != nullptr; }
  absl::StatusOr<Caller> CheckToken(absl::string_view method, absl::string_view token, const std::string& peer);
  void Record(absl::string_view method, const Caller& caller, const std::string& peer, const std::string& job,
              const absl::Status& outcome);

  // For a server, which the access outlives; GrpcServer::Start puts them in their places.
  std::shared_ptr<grpc::AuthMetadataProcessor> Processor();
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> Interceptors();

 private:
  class Checker;
  class Witness;
  class WitnessFactory;
  prometheus::Counter* Failures(const char* reason);
  // Whether who calls may; a refusal is counted, for `reason` if it is not known who, and written down under `name`.
  absl::Status Decide(absl::string_view method, const absl::StatusOr<Caller>& caller, const char* reason,
                      const std::string& name, const std::string& peer);

  const std::unique_ptr<Tokens> tokens_;
  const std::unique_ptr<AuditLog> audit_;
  Metrics* const metrics_;
  const std::function<absl::Time()> now_;
  const HandshakeFailures handshakes_;
};

// Who makes a call of people on a coordinator, by token or certificate; "" if nobody was asked, as without TLS. For the
// time of the call.
std::string CallerOf(const grpc::ServerContextBase& context);

// Whether who makes such a call may still make it: its token may be gone since the call began, or its certificate have
// ended. Streams ask it as they go on, as often as they like: it looks once a second. OK where nobody was asked.
absl::Status StillAllowed(const grpc::ServerContextBase& context);

// The role that the call's certificate names; nothing without TLS or without a certificate that names one.
absl::StatusOr<Role> CertificateRole(const grpc::AuthContext& connection);
// Its common name; empty: it has none, or several.
std::string CertificateName(const grpc::AuthContext& connection);

// Whether the call came over TLS.
bool IsEncrypted(const grpc::AuthContext& connection);

}  // namespace millrace
