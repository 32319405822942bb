// Makes what mutual TLS on this machine takes, with the openssl command: an authority, and one certificate of it that
// serves both ends.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status.h"

namespace millrace {

struct Certificates {
  std::string authority, certificate, key;  // PEM

  // Leaves files in `folder`, which is there.
  static absl::StatusOr<Certificates> Make(const std::string& folder) {
    const std::string script = absl::StrCat("cd ", folder, R"( && {
      openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=authority -keyout authority.key -out authority.pem
      openssl req -newkey rsa:2048 -nodes -subj /CN=node -keyout node.key -out node.csr
      echo subjectAltName=IP:127.0.0.1 | openssl x509 -req -days 1 -in node.csr -CA authority.pem \
        -CAkey authority.key -CAcreateserial -extfile /dev/stdin -out node.pem
    } >/dev/null 2>&1)");
    if (std::system(script.c_str()) != 0) return absl::UnavailableError("openssl makes no certificates here");
    Certificates made;
    MILLRACE_ASSIGN_OR_RETURN(made.authority, ReadFile(folder + "/authority.pem", 1 << 16));
    MILLRACE_ASSIGN_OR_RETURN(made.certificate, ReadFile(folder + "/node.pem", 1 << 16));
    MILLRACE_ASSIGN_OR_RETURN(made.key, ReadFile(folder + "/node.key", 1 << 16));
    return made;
  }

  std::shared_ptr<grpc::ServerCredentials> ForServer() const {
    grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    options.pem_root_certs = authority;
    options.pem_key_cert_pairs = {{key, certificate}};
    return grpc::SslServerCredentials(options);
  }
  std::shared_ptr<grpc::ChannelCredentials> ForClient() const {
    return grpc::SslCredentials({authority, key, certificate});
  }
};

}  // namespace millrace
