// Makes and reads X.509 certificates: ECDSA on P-256, signed with SHA-256.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

// PEM, both.
struct KeyPair {
  std::string certificate;
  std::string key;
};

struct CertificateRequest {
  std::string common_name;         // at most 64 bytes
  std::vector<std::string> hosts;  // subject alternative names: DNS names and IP addresses
  std::vector<std::string> uris;   // likewise
  absl::Time not_before, not_after;
};

// INVALID_ARGUMENT names the host that is none.
absl::StatusOr<KeyPair> MakeAuthority(const CertificateRequest& request);
absl::StatusOr<KeyPair> MakeCertificate(const CertificateRequest& request, const KeyPair& authority);

struct CertificateFacts {
  std::string common_name;
  std::vector<std::string> hosts, uris;
  absl::Time not_before, not_after;
};
// Of the first certificate in the PEM.
absl::StatusOr<CertificateFacts> ReadCertificate(absl::string_view pem);

// Whether a key and a certificate with its chain belong together, and an authority vouches for them now.
// FAILED_PRECONDITION says what does not hold; INVALID_ARGUMENT if one of them is no PEM.
absl::Status CheckKeyPair(const KeyPair& pair, absl::string_view authorities, absl::Time now);

// Whether there is a certificate in the PEM.
bool HoldsCertificate(absl::string_view pem);

// Whether the certificate is of this host, a DNS name or an IP address.
bool IsOfHost(absl::string_view pem, const std::string& host);

}  // namespace millrace
