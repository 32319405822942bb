#include "common/credentials.h"

#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"
#include "testing/http_exchange.h"
#include "testing/role_certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using text::TemporaryFolder;

class FakeJobs final : public v1::Jobs::Service {
 public:
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsReply*) override {
    return grpc::Status::OK;
  }
};

class TlsTest : public ::testing::Test {
 protected:
  std::unique_ptr<GrpcServer> Serve(const std::string& folder) {
    const auto tls = Tls::Open(folder, {.refresh = absl::Seconds(1)});
    EXPECT_OK(tls);
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&jobs_};
    options.access = &access_;
    options.credentials = (*tls)->ForServers();
    auto server = GrpcServer::Start(options);
    EXPECT_OK(server);
    return *std::move(server);
  }
  std::shared_ptr<grpc::ChannelCredentials> Trusting(const std::string& folder, Role server = Role::kCoordinator) {
    const auto tls = Tls::Open(folder);
    EXPECT_OK(tls);
    return (*tls)->ForChannels(server);
  }
  // One call on a connection of its own.
  absl::Status Call(const std::string& address, std::shared_ptr<grpc::ChannelCredentials> credentials) {
    const std::shared_ptr<grpc::Channel> channel = NewChannel(address, std::move(credentials));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    v1::ListJobsReply reply;
    const absl::Status status = FromGrpc(v1::Jobs::NewStub(channel)->ListJobs(&context, {}, &reply));
    trouble_ = HandshakeTrouble(channel);
    return status;
  }
  std::string At(const GrpcServer& server, const std::string& host) {
    return absl::StrCat(host, server.address().substr(server.address().rfind(':')));
  }

  const TemporaryFolder folder_;
  const TestAuthority authority_;
  Metrics metrics_;
  FakeJobs jobs_;
  Access access_{[this] {
    AccessOptions options;
    options.metrics = &metrics_;
    return options;
  }()};
  std::string trouble_;  // of the last call
};

TEST_F(TlsTest, BothEndsKnowEachOther) {
  const auto server = Serve(authority_.Place(folder_ / "server", Role::kCoordinator));
  const std::string viewer = authority_.Place(folder_ / "viewer", Role::kViewer);
  EXPECT_OK(Call(server->address(), Trusting(viewer)));
  EXPECT_OK(Call(At(*server, "localhost"), Trusting(viewer)));
  EXPECT_EQ(trouble_, "");
  // Plain TCP gets no answer.
  EXPECT_TRUE(absl::IsUnavailable(Call(server->address(), nullptr)));
}

TEST_F(TlsTest, AServerOfAnotherAuthorityIsNotTrusted) {
  const TestAuthority other;
  const auto server = Serve(other.Place(folder_ / "server", Role::kCoordinator));
  EXPECT_TRUE(
      absl::IsUnavailable(Call(server->address(), Trusting(authority_.Place(folder_ / "viewer", Role::kViewer)))));
  EXPECT_THAT(trouble_, HasSubstr("ertificate"));
}

TEST_F(TlsTest, AServerOfAnotherNameIsNotTrustedAndSaysWhichItHas) {
  CertificateRequest request = TestAuthority::Request(Role::kCoordinator);
  request.hosts = {"coordinator.example", "10.9.8.7"};
  const auto server = Serve(authority_.Place(folder_ / "server", request));
  EXPECT_FALSE(Call(server->address(), Trusting(authority_.Place(folder_ / "viewer", Role::kViewer))).ok());
  EXPECT_THAT(trouble_,
              AllOf(HasSubstr("shown at 127.0.0.1 is not for that name but for coordinator.example, 10.9.8.7")));
}

TEST_F(TlsTest, AServerOfAnotherRoleIsNotTrusted) {
  const auto server = Serve(authority_.Place(folder_ / "server", Role::kWorker));
  EXPECT_FALSE(Call(server->address(), Trusting(authority_.Place(folder_ / "viewer", Role::kViewer))).ok());
  EXPECT_THAT(trouble_, HasSubstr("is not a coordinator's: it lacks the URI spiffe://millrace/coordinator"));
}

TEST_F(TlsTest, AClientOfAnotherAuthorityOrTimeIsNotTrusted) {
  const TestAuthority other;
  const auto server = Serve(authority_.Place(folder_ / "server", Role::kCoordinator));
  // As such a client would be, which does not look at its own files as Tls does.
  const auto with = [this](const KeyPair& pair) {
    return grpc::SslCredentials({authority_.pair().certificate, pair.key, pair.certificate});
  };
  EXPECT_OK(Call(server->address(), with(authority_.Issue(TestAuthority::Request(Role::kViewer)))));
  EXPECT_TRUE(absl::IsUnavailable(Call(server->address(), with(other.Issue(TestAuthority::Request(Role::kViewer))))));
  CertificateRequest past = TestAuthority::Request(Role::kViewer);
  past.not_after = absl::Now() - absl::Hours(1);
  EXPECT_TRUE(absl::IsUnavailable(Call(server->address(), with(authority_.Issue(past)))));
  CertificateRequest future = TestAuthority::Request(Role::kViewer);
  future.not_before = absl::Now() + absl::Minutes(30);
  EXPECT_TRUE(absl::IsUnavailable(Call(server->address(), with(authority_.Issue(future)))));
}

TEST_F(TlsTest, HandshakesThatFailAreCounted) {
  const auto server = Serve(authority_.Place(folder_ / "server", Role::kCoordinator));
  const auto failures = [this] {
    const std::string text = metrics_.Text();
    const size_t at = text.find("\nmillrace_tls_handshake_failures_total ");
    return at == std::string::npos ? -1 : std::atoi(text.c_str() + text.find(' ', at));
  };
  EXPECT_EQ(failures(), 0);
  EXPECT_OK(Call(server->address(), Trusting(authority_.Place(folder_ / "viewer", Role::kViewer))));
  EXPECT_EQ(failures(), 0);
  // The server may note it a moment after who calls knows.
  const auto await = [&](int count) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (failures() < count && absl::Now() < deadline) std::this_thread::yield();
    return failures() >= count;
  };
  testing::Exchange(server->address(), "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_TRUE(await(1));
  const TestAuthority other;
  const KeyPair stranger = other.Issue(TestAuthority::Request(Role::kViewer));
  EXPECT_FALSE(
      Call(server->address(), grpc::SslCredentials({authority_.pair().certificate, stranger.key, stranger.certificate}))
          .ok());
  EXPECT_TRUE(await(2));
}

TEST_F(TlsTest, FilesAreReadAgainWhenTheyChange) {
  // As Kubernetes places a secret: the files are links into a folder that a link names, which is replaced.
  const TestAuthority next;
  namespace fs = std::filesystem;
  const std::string mount = folder_ / "mount";
  authority_.Place(mount + "/..first", Role::kCoordinator);
  next.Place(mount + "/..second", Role::kCoordinator);
  fs::create_symlink("..first", mount + "/..data");
  for (const char* name : {"tls.crt", "tls.key", "ca.crt"}) {
    fs::create_symlink(absl::StrCat("..data/", name), absl::StrCat(mount, "/", name));
  }
  const auto server = Serve(mount);
  const auto old_client = Trusting(authority_.Place(folder_ / "old", Role::kViewer));
  const auto new_client = Trusting(next.Place(folder_ / "new", Role::kViewer));
  EXPECT_OK(Call(server->address(), old_client));
  EXPECT_FALSE(Call(server->address(), new_client).ok());

  fs::create_symlink("..second", mount + "/..next");
  fs::rename(mount + "/..next", mount + "/..data");
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!Call(server->address(), new_client).ok()) ASSERT_LT(absl::Now(), deadline);
  EXPECT_FALSE(Call(server->address(), old_client).ok());
  // The server's end of it: who shows a certificate of the old authority, and trusts the new one, is refused too.
  const KeyPair old_pair = authority_.Issue(TestAuthority::Request(Role::kViewer));
  EXPECT_FALSE(
      Call(server->address(), grpc::SslCredentials({next.pair().certificate, old_pair.key, old_pair.certificate}))
          .ok());
}

TEST_F(TlsTest, OpenSaysWhatIsWrongWithTheFiles) {
  const TestAuthority other;
  const auto message = [](const std::string& folder) { return std::string(Tls::Open(folder).status().message()); };
  EXPECT_THAT(message(folder_ / "nothing"), HasSubstr(folder_ / "nothing/ca.crt"));
  EXPECT_THAT(message(authority_.PlaceAuthority(folder_ / "authority")), HasSubstr(folder_ / "authority/tls.crt"));
  const std::string mixed = authority_.Place(folder_ / "mixed", Role::kWorker);
  other.PlaceAuthority(mixed);
  EXPECT_THAT(message(mixed), AllOf(HasSubstr(mixed), HasSubstr("does not hold by ca.crt")));
  CertificateRequest past = TestAuthority::Request(Role::kWorker);
  past.not_after = absl::Now() - absl::Hours(1);
  EXPECT_THAT(message(authority_.Place(folder_ / "past", past)), HasSubstr("expired"));
  EXPECT_THAT(message(folder_ / "none"), HasSubstr("ca.crt"));
  folder_.Write("text/ca.crt", "not PEM");
  EXPECT_THAT(message(folder_ / "text"), HasSubstr("text/ca.crt holds no certificate"));
}

TEST_F(TlsTest, TheEndOfTheCertificateIsAMetric) {
  CertificateRequest request = TestAuthority::Request(Role::kShard);
  request.not_after = absl::FromUnixSeconds(absl::ToUnixSeconds(absl::Now()) + 1234);
  const auto tls = *Tls::Open(authority_.Place(folder_ / "shard", request));
  EXPECT_EQ(*tls->Expiry(), request.not_after);
  TellExpiry(tls.get(), &metrics_);
  EXPECT_THAT(metrics_.Text(), HasSubstr(absl::StrCat("millrace_tls_certificate_expiry_timestamp_seconds ",
                                                      absl::ToUnixSeconds(request.not_after))));
  TellExpiry(nullptr, &metrics_);
}

TEST_F(TlsTest, TheCertificateIsReadAgainWhereItIsAnother) {
  namespace fs = std::filesystem;
  CertificateRequest request = TestAuthority::Request(Role::kShard);
  const auto end_at = [&request](int seconds) {
    request.not_after = absl::FromUnixSeconds(absl::ToUnixSeconds(absl::Now()) + seconds);
    return request.not_after;
  };
  const absl::Time first = end_at(1000);
  const std::string folder = authority_.Place(folder_ / "shard", request);
  const auto tls = *Tls::Open(folder);
  EXPECT_EQ(*tls->Expiry(), first);
  // What is in the file does not count as long as it looks the same.
  const std::string file = folder + "/tls.crt";
  const fs::file_time_type written = fs::last_write_time(file);
  folder_.Write("shard/tls.crt", std::string(fs::file_size(file), 'x'));
  fs::last_write_time(file, written);
  EXPECT_EQ(*tls->Expiry(), first);
  // Written over, and renamed into place.
  folder_.Write("shard/tls.crt", "x");
  EXPECT_FALSE(tls->Expiry().ok());
  const absl::Time second = end_at(2000);
  authority_.Place(folder, request);
  EXPECT_EQ(*tls->Expiry(), second);
}

TEST(CheckListen, RefusesPlainTcpToOthersUnlessAskedTo) {
  for (const char* listen : {"127.0.0.1:0", "127.9.8.7:7400", "[::1]:7400", "localhost:0"}) {
    EXPECT_TRUE(IsLoopback(listen)) << listen;
    EXPECT_OK(CheckListen(listen, false, false)) << listen;
  }
  for (const char* listen : {"0.0.0.0:7400", "[::]:7400", "10.0.0.1:7400", "192.0.2.1:0", "128.0.0.1:1",
                             "no.such.host.invalid:1", ":7400"}) {
    EXPECT_FALSE(IsLoopback(listen)) << listen;
    const absl::Status status = CheckListen(listen, false, false);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(listen), HasSubstr("--tls DIR"), HasSubstr("--plaintext")));
    EXPECT_OK(CheckListen(listen, true, false));
    EXPECT_OK(CheckListen(listen, false, true));
  }
}

}  // namespace
}  // namespace millrace
