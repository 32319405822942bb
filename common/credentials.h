// Holds what a process shows and trusts under TLS: the files of a folder, laid out as in a Kubernetes TLS secret.
//
//   DIR/tls.crt   certificate, then those between it and the authority's; PEM
//   DIR/tls.key   its key; PEM
//   DIR/ca.crt    the authorities whose certificates are accepted from others; PEM
//
// The files are looked at again every few seconds: connections made after they changed use the new ones.
#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/roles.h"

namespace millrace {

struct TlsOptions {
  bool needs_identity = true;                 // false: ca.crt will do; tls.crt and tls.key are used where they are
  absl::Duration refresh = absl::Seconds(5);  // at least 1 s
};

// Thread-safe.
class Tls {
 public:
  // Errors name the file. The certificate must hold now, by ca.crt.
  static absl::StatusOr<std::shared_ptr<const Tls>> Open(const std::string& directory, const TlsOptions& options = {});
  ~Tls();

  // Whether there is a certificate to show.
  bool has_identity() const;

  // For channels to servers of a role: their certificate must name the host that was dialled, and the role.
  std::shared_ptr<grpc::ChannelCredentials> ForChannels(Role server) const;
  // The same, with a token in each call.
  std::shared_ptr<grpc::ChannelCredentials> ForChannels(Role server, const std::string& token) const;

  // For a server. Callers' certificates are verified where they are brought; who may call is Access' matter. Requires
  // an identity.
  std::shared_ptr<grpc::ServerCredentials> ForServers() const;

  // When the certificate in the folder, as it is now, ends. It is read again only if the file is another than before.
  absl::StatusOr<absl::Time> Expiry() const;

 private:
  struct Impl;
  explicit Tls(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

// Publishes `tls`'s Expiry as a metric; call now and then. Nothing happens if `tls` is null.
void TellExpiry(const Tls* tls, Metrics* metrics);

// OK if nobody beyond this machine reaches `listen`, a HOST:PORT, or if `encrypted` or `plaintext` allows them to.
// FAILED_PRECONDITION names both ways out.
absl::Status CheckListen(absl::string_view listen, bool encrypted, bool plaintext);
// Whether the host of `listen` is in 127.0.0.0/8 or ::1, or a name for nothing else.
bool IsLoopback(absl::string_view listen);

}  // namespace millrace
