// millrace certs: makes an authority with a certificate for each role, and tokens for people.
//
//   DIR/ca.crt, ca.key                     the authority; ca.key signs and stays here
//   DIR/ROLE/tls.crt, tls.key, ca.crt      coordinator, shard, worker, operator, viewer: what --tls takes
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "common/certificates.h"
#include "common/files.h"
#include "common/roles.h"
#include "common/status.h"
#include "common/tokens.h"

namespace millrace::cli {
namespace {

constexpr absl::Duration kDay = absl::Hours(24);
constexpr absl::Duration kAuthorityLasts = absl::Hours(24 * 3650);
// Other machines' clocks may be a little behind.
constexpr absl::Duration kSlack = absl::Minutes(5);
constexpr uint64_t kMaxPemBytes = 1 << 20;

// For its owner alone, from the first moment on.
absl::Status WriteSecret(const std::string& path, const std::string& text) {
  const std::string beside = absl::StrCat(path, ".new");
  unlink(beside.c_str());
  const int file = open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return ErrnoStatus(errno, "write", beside);
  const bool written = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(file) == 0;
  const int error = errno;
  close(file);
  if (!written) return ErrnoStatus(error, "write", beside);
  if (rename(beside.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "write", path);
  return absl::OkStatus();
}

bool Exists(const std::string& path) {
  struct stat about;
  return stat(path.c_str(), &about) == 0;
}

// The one in the folder, or a new one.
absl::StatusOr<KeyPair> Authority(const std::string& out, absl::Time now) {
  const std::string certificate = absl::StrCat(out, "/ca.crt"), key = absl::StrCat(out, "/ca.key");
  KeyPair authority;
  if (Exists(certificate) || Exists(key)) {
    MILLRACE_ASSIGN_OR_RETURN(authority.certificate, ReadFile(certificate, kMaxPemBytes));
    MILLRACE_ASSIGN_OR_RETURN(authority.key, ReadFile(key, kMaxPemBytes));
    return authority;
  }
  CertificateRequest request;
  request.common_name = "Millrace test authority";
  request.not_before = now - kSlack;
  request.not_after = now + kAuthorityLasts;
  MILLRACE_ASSIGN_OR_RETURN(authority, MakeAuthority(request));
  MILLRACE_RETURN_IF_ERROR(WriteSecret(key, authority.key));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(certificate, authority.certificate));
  return authority;
}

absl::Status RunToken(Arguments arguments) {
  std::string name, role;
  Flags flags(
      "certs token",
      "Prints a new token, which its owner keeps in a file for --token-file, on standard output, and its line for "
      "the coordinator's --tokens file on standard error.",
      "alice operator > alice.token 2>> tokens");
  flags.Positional("NAME", "whose it is", &name).Required();
  flags.Positional("ROLE", "operator, or viewer", &role).Required();
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  const std::string token = NewToken();
  MILLRACE_ASSIGN_OR_RETURN(const std::string line, TokenLine(name, role, token));
  std::printf("%s\n", token.c_str());
  std::fprintf(stderr, "%s\n", line.c_str());
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCerts(Arguments arguments) {
  if (!arguments.empty() && arguments[0] == "token") return RunToken(arguments.subspan(1));
  std::string out;
  std::vector<std::string> hosts;
  int64_t days = 365;
  Flags flags("certs",
              "Makes an authority and a folder of certificates for each role, for a cluster of your own; again: new "
              "certificates of the same authority. `millrace certs token NAME ROLE` makes a token.",
              "--out certs --host 10.0.0.1 --host node-2");
  flags.Text("out", "DIR", "folder to make", &out).Required();
  flags.List("host", "NAME", "name or IP address at which a coordinator or shard is reached, besides localhost",
             &hosts);
  flags.Integer("days", "N", "so long do the roles' certificates hold", &days, 1, 3650);
  MILLRACE_RETURN_IF_ERROR(flags.Parse(arguments));
  const absl::Time now = absl::Now();
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(out));
  MILLRACE_ASSIGN_OR_RETURN(const KeyPair authority, Authority(out, now));
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(authority.certificate);
  if (!facts.ok()) return Annotate(facts.status(), absl::StrCat(out, "/ca.crt"));
  if (facts->not_after < now) {
    return absl::FailedPreconditionError(absl::StrCat(out, "/ca.crt ended at ",
                                                      absl::FormatTime(facts->not_after, absl::UTCTimeZone()),
                                                      ": make a new authority in another folder"));
  }
  for (const Role role : AllRoles()) {
    const std::string name(RoleName(role));
    CertificateRequest request;
    request.common_name = name;
    request.uris = {absl::StrCat(kRoleUri, name)};
    // Only these serve: nobody else can pass for one.
    if (role == Role::kCoordinator || role == Role::kShard) {
      request.hosts = {"localhost", "127.0.0.1", "::1"};
      for (const std::string& host : hosts) {
        if (std::find(request.hosts.begin(), request.hosts.end(), host) == request.hosts.end()) {
          request.hosts.push_back(host);
        }
      }
    }
    request.not_before = now - kSlack;
    request.not_after = std::min(now + days * kDay, facts->not_after);
    const absl::StatusOr<KeyPair> pair = MakeCertificate(request, authority);
    if (absl::IsInvalidArgument(pair.status())) return UsageError(absl::StrCat("--host: ", pair.status().message()));
    if (!pair.ok()) return pair.status();
    const std::string folder = absl::StrCat(out, "/", name);
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(folder));
    MILLRACE_RETURN_IF_ERROR(WriteSecret(absl::StrCat(folder, "/tls.key"), pair->key));
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/tls.crt"), pair->certificate));
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/ca.crt"), authority.certificate));
    std::printf("%s\n", folder.c_str());
  }
  return absl::OkStatus();
}

}  // namespace millrace::cli
