#include "common/certificates.h"

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/role_certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// What the openssl command says, which read the files by itself.
std::string OpenSsl(const std::string& arguments) {
  std::string output;
  FILE* const pipe = popen(absl::StrCat("openssl ", arguments, " 2>&1").c_str(), "r");
  for (int c; (c = std::fgetc(pipe)) != EOF;) output.push_back(static_cast<char>(c));
  pclose(pipe);
  return output;
}

TEST(Certificates, HoldByTheOpensslCommand) {
  const TemporaryFolder folder;
  const TestAuthority authority;
  CertificateRequest request = TestAuthority::Request(Role::kShard);
  request.hosts = {"node-1.example", "10.0.0.7", "fd00::7"};
  authority.Place(folder / "tls", request);
  const std::string certificate = folder / "tls/tls.crt", ca = folder / "tls/ca.crt";
  EXPECT_THAT(OpenSsl(absl::StrCat("verify -x509_strict -purpose sslserver -CAfile ", ca, " ", certificate)),
              HasSubstr("tls.crt: OK"));
  EXPECT_THAT(OpenSsl(absl::StrCat("verify -x509_strict -purpose sslclient -CAfile ", ca, " ", certificate)),
              HasSubstr("tls.crt: OK"));
  EXPECT_THAT(OpenSsl(absl::StrCat("verify -verify_hostname node-1.example -CAfile ", ca, " ", certificate)),
              HasSubstr("OK"));
  EXPECT_THAT(OpenSsl(absl::StrCat("verify -verify_ip fd00::7 -CAfile ", ca, " ", certificate)), HasSubstr("OK"));
  EXPECT_THAT(OpenSsl(absl::StrCat("verify -verify_hostname node-2.example -CAfile ", ca, " ", certificate)),
              HasSubstr("ostname mismatch"));
  const std::string text = OpenSsl(absl::StrCat("x509 -noout -text -in ", certificate));
  EXPECT_THAT(text, HasSubstr("URI:spiffe://millrace/shard"));
  EXPECT_THAT(text, HasSubstr("prime256v1"));
  EXPECT_THAT(text, HasSubstr("CA:FALSE"));
  EXPECT_EQ(OpenSsl(absl::StrCat("pkey -pubout -in ", folder / "tls/tls.key")),
            OpenSsl(absl::StrCat("x509 -noout -pubkey -in ", certificate)));
}

TEST(Certificates, AreReadAsTheyWereMade) {
  const TestAuthority authority;
  CertificateRequest request = TestAuthority::Request(Role::kWorker);
  request.hosts = {"a.example", "10.0.0.7", "fd00::7"};
  request.not_after = absl::FromUnixSeconds(absl::ToUnixSeconds(request.not_after));
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(authority.Issue(request).certificate);
  ASSERT_OK(facts);
  EXPECT_EQ(facts->common_name, "worker");
  EXPECT_THAT(facts->hosts, ElementsAre("a.example", "10.0.0.7", "fd00::7"));
  EXPECT_THAT(facts->uris, ElementsAre("spiffe://millrace/worker"));
  EXPECT_EQ(facts->not_after, request.not_after);
  EXPECT_FALSE(ReadCertificate("no PEM").ok());
  EXPECT_FALSE(HoldsCertificate(""));
}

TEST(Certificates, KnowTheirHosts) {
  const TestAuthority authority;
  CertificateRequest request = TestAuthority::Request(Role::kShard);
  request.hosts = {"*.cluster.example", "10.0.0.7"};
  const std::string pem = authority.Issue(request).certificate;
  EXPECT_TRUE(IsOfHost(pem, "a.cluster.example"));
  EXPECT_TRUE(IsOfHost(pem, "10.0.0.7"));
  EXPECT_FALSE(IsOfHost(pem, "10.0.0.8"));
  EXPECT_FALSE(IsOfHost(pem, "a.b.cluster.example"));
  EXPECT_FALSE(IsOfHost(pem, "shard"));  // its common name
}

TEST(Certificates, AreNotMadeForWhatIsNoHost) {
  const TestAuthority authority;
  for (const char* host : {"", "a b", "evil,DNS:other", "x/y", "-a"}) {
    CertificateRequest request = TestAuthority::Request(Role::kShard);
    request.hosts = {host};
    EXPECT_TRUE(absl::IsInvalidArgument(MakeCertificate(request, authority.pair()).status())) << host;
  }
}

TEST(CheckKeyPair, SaysWhatDoesNotHold) {
  const TestAuthority authority, other;
  const KeyPair pair = authority.Issue(TestAuthority::Request(Role::kWorker));
  const KeyPair second = authority.Issue(TestAuthority::Request(Role::kWorker));
  const std::string& ca = authority.pair().certificate;
  const absl::Time now = absl::Now();
  EXPECT_OK(CheckKeyPair(pair, ca, now));
  EXPECT_OK(CheckKeyPair(pair, other.pair().certificate + ca, now));
  const auto message = [](const absl::Status& status) { return std::string(status.message()); };
  EXPECT_THAT(message(CheckKeyPair(pair, other.pair().certificate, now)), HasSubstr("does not hold by ca.crt"));
  EXPECT_THAT(message(CheckKeyPair(pair, ca, now + absl::Hours(2))), HasSubstr("expired"));
  EXPECT_THAT(message(CheckKeyPair(pair, ca, now - absl::Hours(3))), HasSubstr("not yet valid"));
  EXPECT_THAT(message(CheckKeyPair({.certificate = pair.certificate, .key = second.key}, ca, now)),
              HasSubstr("not the key"));
  EXPECT_THAT(message(CheckKeyPair({.certificate = "x", .key = pair.key}, ca, now)), HasSubstr("tls.crt"));
  EXPECT_THAT(message(CheckKeyPair({.certificate = pair.certificate, .key = "x"}, ca, now)), HasSubstr("tls.key"));
  EXPECT_THAT(message(CheckKeyPair(pair, "x", now)), HasSubstr("ca.crt"));
}

}  // namespace
}  // namespace millrace
