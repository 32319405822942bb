#include "common/credentials.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/certificates.h"
#include "common/file_state.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/log.h"
#include "common/status.h"

namespace millrace {
namespace {

namespace tls = grpc::experimental;

constexpr uint64_t kMaxPemBytes = 1 << 20;

// "10.0.0.1", "::1", "node-1" of "10.0.0.1:7400", "[::1]:7400", "node-1:7400".
std::string HostOf(absl::string_view address) {
  const size_t colon = address.rfind(':');
  absl::string_view host = address;
  // A bare IPv6 address has several.
  if (colon != absl::string_view::npos && (address.find(':') == colon || (colon > 0 && address[colon - 1] == ']'))) {
    host = address.substr(0, colon);
  }
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) host = host.substr(1, host.size() - 2);
  return std::string(host);
}

std::string Shown(absl::string_view text) { return absl::CHexEscape(text.substr(0, 120)); }

// Looks at a server's certificate once its authority was found good.
class ServerVerifier : public tls::ExternalCertificateVerifier {
 public:
  explicit ServerVerifier(Role role) : role_(role) {}
  bool Verify(tls::TlsCustomVerificationCheckRequest* request, std::function<void(grpc::Status)>,
              grpc::Status* status) override {
    *status = Judge(*request);
    return true;
  }
  void Cancel(tls::TlsCustomVerificationCheckRequest*) override {}

 private:
  grpc::Status Judge(const tls::TlsCustomVerificationCheckRequest& request) const {
    const grpc::string_ref target = request.target_name();
    const grpc::string_ref pem = request.peer_cert();
    const std::string host = HostOf({target.data(), target.size()});
    const absl::StatusOr<CertificateFacts> facts = ReadCertificate({pem.data(), pem.size()});
    if (!facts.ok()) return {grpc::StatusCode::UNAUTHENTICATED, "the server shows no certificate that can be read"};
    if (!IsOfHost({pem.data(), pem.size()}, host)) {
      return {grpc::StatusCode::UNAUTHENTICATED,
              absl::StrCat("the certificate shown at ", Shown(host), " is not for that name but for ",
                           facts->hosts.empty() ? "none" : Shown(absl::StrJoin(facts->hosts, ", ")))};
    }
    const std::string wanted = absl::StrCat(kRoleUri, RoleName(role_));
    for (const std::string& uri : facts->uris) {
      if (uri == wanted) return grpc::Status::OK;
    }
    return {grpc::StatusCode::UNAUTHENTICATED, absl::StrCat("the certificate shown at ", Shown(host), " is not a ",
                                                            RoleName(role_), "'s: it lacks the URI ", wanted)};
  }

  const Role role_;
};

bool IsLoopbackAddress(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    return (ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24) == 127;
  }
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

}  // namespace

struct Tls::Impl {
  std::string directory;
  bool has_identity = false;
  std::shared_ptr<tls::CertificateProviderInterface> provider;
  absl::Mutex mutex;
  FileState read ABSL_GUARDED_BY(mutex);  // of the certificate whose end is known
  absl::Time expiry ABSL_GUARDED_BY(mutex);

  std::string File(const char* name) const { return absl::StrCat(directory, "/", name); }
  absl::StatusOr<std::string> Read(const char* name) const { return ReadFile(File(name), kMaxPemBytes); }

  void Fill(tls::TlsCredentialsOptions* options) const {
    options->watch_root_certs();
    if (has_identity) options->watch_identity_key_cert_pairs();
  }
};

Tls::Tls(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tls::~Tls() = default;

absl::StatusOr<std::shared_ptr<const Tls>> Tls::Open(const std::string& directory, const TlsOptions& options) {
  KeepGrpc();
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  MILLRACE_ASSIGN_OR_RETURN(const std::string authorities, impl->Read("ca.crt"));
  if (!HoldsCertificate(authorities)) {
    return absl::InvalidArgumentError(absl::StrCat(impl->File("ca.crt"), " holds no certificate in PEM"));
  }
  struct stat about;
  impl->has_identity = options.needs_identity || stat(impl->File("tls.crt").c_str(), &about) == 0 ||
                       stat(impl->File("tls.key").c_str(), &about) == 0;
  const auto refresh = static_cast<unsigned>(std::max<int64_t>(1, absl::ToInt64Seconds(options.refresh)));
  if (impl->has_identity) {
    KeyPair pair;
    MILLRACE_ASSIGN_OR_RETURN(pair.certificate, impl->Read("tls.crt"));
    MILLRACE_ASSIGN_OR_RETURN(pair.key, impl->Read("tls.key"));
    MILLRACE_RETURN_IF_ERROR(Annotate(CheckKeyPair(pair, authorities, absl::Now()), directory));
    impl->provider = std::make_shared<tls::FileWatcherCertificateProvider>(impl->File("tls.key"), impl->File("tls.crt"),
                                                                           impl->File("ca.crt"), refresh);
  } else {
    impl->provider = std::make_shared<tls::FileWatcherCertificateProvider>(impl->File("ca.crt"), refresh);
  }
  return std::shared_ptr<const Tls>(new Tls(std::move(impl)));
}

bool Tls::has_identity() const { return impl_->has_identity; }

std::shared_ptr<grpc::ChannelCredentials> Tls::ForChannels(Role server) const {
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(impl_->provider);
  impl_->Fill(&options);
  options.set_certificate_verifier(tls::ExternalCertificateVerifier::Create<ServerVerifier>(server));
  // The verifier compares the name that the channel dials; calls have no other.
  options.set_check_call_host(false);
  return tls::TlsCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> Tls::ForChannels(Role server, const std::string& token) const {
  return grpc::CompositeChannelCredentials(ForChannels(server), grpc::AccessTokenCredentials(token));
}

std::shared_ptr<grpc::ServerCredentials> Tls::ForServers() const {
  tls::TlsServerCredentialsOptions options(impl_->provider);
  impl_->Fill(&options);
  // People may have a token instead.
  options.set_cert_request_type(GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  return tls::TlsServerCredentials(options);
}

absl::StatusOr<absl::Time> Tls::Expiry() const {
  absl::MutexLock lock(&impl_->mutex);
  // Before the file is read: if it is replaced in between, it is read again next time.
  const FileState now = FileState::Of(impl_->File("tls.crt"));
  if (now.there() && now == impl_->read) return impl_->expiry;
  MILLRACE_ASSIGN_OR_RETURN(const std::string pem, impl_->Read("tls.crt"));
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(pem);
  if (!facts.ok()) return Annotate(facts.status(), impl_->File("tls.crt"));
  impl_->read = now;
  impl_->expiry = facts->not_after;
  return facts->not_after;
}

void TellExpiry(const Tls* tls, Metrics* metrics) {
  if (tls == nullptr || !tls->has_identity()) return;
  const absl::StatusOr<absl::Time> expiry = tls->Expiry();
  // While the files are replaced the former value stays.
  if (!expiry.ok()) return;
  metrics
      ->Gauge("millrace_tls_certificate_expiry_timestamp_seconds",
              "When the certificate that this process shows ends, in seconds since 1970.")
      ->Set(static_cast<double>(absl::ToUnixSeconds(*expiry)));
}

bool IsLoopback(absl::string_view listen) {
  const std::string host = HostOf(listen);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (host.empty() || getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return false;
  bool loopback = true;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    loopback = loopback && IsLoopbackAddress(one->ai_addr);
  }
  freeaddrinfo(found);
  return loopback;
}

absl::Status CheckListen(absl::string_view listen, bool encrypted, bool plaintext) {
  if (encrypted || plaintext || IsLoopback(listen)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("--listen ", listen,
                   " is reached from other machines, and nothing would be encrypted and nobody asked who they are: "
                   "give --tls DIR (`millrace certs` makes such folders), or --plaintext in a network of your own"));
}

}  // namespace millrace
