#include "common/access.h"

#include <google/protobuf/descriptor.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/credentials.h"
#include "common/files.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"
#include "proto/millrace/v1/parameter_server.grpc.pb.h"
#include "proto/millrace/v1/ratings.grpc.pb.h"
#include "testing/role_certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using text::TemporaryFolder;

// ---- the table ----

// Every method of every .proto in proto/millrace/v1.
std::set<std::string> DeclaredMethods() {
  // Links their descriptors in.
  for (const auto* const linked : {v1::Job::descriptor(), v1::RatingSet::descriptor(), v1::JoinRequest::descriptor(),
                                   v1::PullRequest::descriptor()}) {
    EXPECT_NE(linked, nullptr);
  }
  std::set<std::string> methods;
  const std::string folder = MILLRACE_SOURCE_DIR "/proto/millrace/v1";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".proto") continue;
    std::ifstream stream(entry.path());
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    if (!absl::StrContains(text, "\nservice ")) continue;
    const google::protobuf::FileDescriptor* const file =
        google::protobuf::DescriptorPool::generated_pool()->FindFileByName(
            absl::StrCat("proto/millrace/v1/", entry.path().filename().string()));
    EXPECT_NE(file, nullptr) << entry.path() << " has a service that this test does not link";
    for (int i = 0; file != nullptr && i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j) {
        methods.insert(absl::StrCat("/", file->service(i)->full_name(), "/", file->service(i)->method(j)->name()));
      }
    }
  }
  return methods;
}

TEST(MethodRules, ThereIsOneForEachMethodAndNoOther) {
  const std::set<std::string> declared = DeclaredMethods();
  EXPECT_GT(declared.size(), 20u);
  for (const std::string& method : declared) {
    const MethodRule* const rule = FindMethodRule(method);
    EXPECT_NE(rule, nullptr) << method << " needs a line in common/roles.cc";
    if (rule == nullptr) continue;
    EXPECT_FALSE(rule->anybody) << method;
    EXPECT_NE(rule->roles, 0) << method;
  }
  for (const MethodRule& rule : MethodRules()) {
    const bool ours = !absl::StartsWith(rule.method, "/grpc.");
    EXPECT_TRUE(!ours || declared.contains(std::string(rule.method))) << rule.method;
  }
}

TEST(MethodRules, MembersDoNothingThatPeopleDo) {
  for (const MethodRule& rule : MethodRules()) {
    const bool people =
        absl::StartsWith(rule.method, "/millrace.v1.Jobs/") || absl::StartsWith(rule.method, "/millrace.v1.Ratings/");
    for (const Role member : {Role::kCoordinator, Role::kShard, Role::kWorker}) {
      EXPECT_FALSE(people && Allows(rule, member)) << rule.method;
    }
    EXPECT_EQ(Allows(rule, Role::kOperator) && people, people) << rule.method;
    EXPECT_FALSE(rule.changes && Allows(rule, Role::kViewer)) << rule.method;
    EXPECT_FALSE(absl::StrContains(rule.method, "Cluster/") && Allows(rule, Role::kOperator)) << rule.method;
  }
}

TEST(MethodRules, AreThoseOfTheDocument) {
  std::ifstream stream(MILLRACE_SOURCE_DIR "/docs/security.md");
  const std::string document{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::set<std::string> rows, rules;
  for (const absl::string_view line : absl::StrSplit(document, '\n')) {
    // | `Jobs/SubmitJob` | operator | yes |
    if (absl::StartsWith(line, "| `") && absl::StrContains(line, "/")) rows.insert(std::string(line));
  }
  for (const MethodRule& rule : MethodRules()) {
    std::vector<std::string> roles;
    for (const Role role : AllRoles()) {
      if (Allows(rule, role)) roles.emplace_back(RoleName(role));
    }
    absl::string_view method = rule.method;
    method.remove_prefix(1);
    if (absl::StartsWith(method, "millrace.v1.")) method.remove_prefix(std::string("millrace.v1.").size());
    rules.insert(absl::StrCat("| `", method, "` | ", rule.anybody ? "anybody" : absl::StrJoin(roles, ", "), " | ",
                              rule.changes ? "yes" : "", " |"));
  }
  EXPECT_EQ(rows, rules);
}

// ---- calls ----

// Says who it thinks calls.
class FakeJobs final : public v1::Jobs::Service {
 public:
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest*, v1::ListJobsReply* reply) override {
    reply->add_jobs()->set_id(CallerOf(*context));
    return grpc::Status::OK;
  }
  grpc::Status SubmitJob(grpc::ServerContext* context, const v1::SubmitJobRequest*, v1::Job* reply) override {
    reply->set_id("made");
    reply->set_error(CallerOf(*context));
    return grpc::Status::OK;
  }
  grpc::Status CancelJob(grpc::ServerContext*, const v1::JobRequest*, v1::Job*) override {
    return ToGrpc(absl::NotFoundError("no such job"));
  }
};

class AccessTest : public ::testing::Test {
 protected:
  AccessTest() {
    folder_.Write("tokens",
                  absl::StrCat(*TokenLine("alice", "operator", kAlices), "\n", *TokenLine("bob", "viewer", kBobs)));
    AccessOptions options;
    options.tokens = *Tokens::Open(folder_ / "tokens");
    options.audit = *AuditLog::Open(folder_ / "audit.jsonl");
    options.metrics = &metrics_;
    options.now = [this] { return absl::Now() + ahead_.load(); };
    access_ = std::make_unique<Access>(std::move(options));
  }
  void Start(std::shared_ptr<const Tls> tls) {
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&jobs_};
    options.access = access_.get();
    if (tls != nullptr) options.credentials = tls->ForServers();
    absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(options);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }
  void StartTls() { Start(Open(Role::kCoordinator)); }
  std::shared_ptr<const Tls> Open(Role role) {
    return *Tls::Open(authority_.Place(folder_ / std::string(RoleName(role)), role));
  }
  std::shared_ptr<const Tls> OpenWithoutIdentity() {
    return *Tls::Open(authority_.PlaceAuthority(folder_ / "authority"), {.needs_identity = false});
  }
  std::shared_ptr<grpc::ChannelCredentials> As(Role role) { return Open(role)->ForChannels(Role::kCoordinator); }
  std::shared_ptr<grpc::ChannelCredentials> With(const std::string& token) {
    return OpenWithoutIdentity()->ForChannels(Role::kCoordinator, token);
  }

  // The name that the server knows the caller by, or the error.
  absl::StatusOr<std::string> List(std::shared_ptr<grpc::ChannelCredentials> credentials) {
    grpc::ClientContext context;
    v1::ListJobsReply reply;
    const grpc::Status status = Stub(std::move(credentials))->ListJobs(&context, {}, &reply);
    if (!status.ok()) return FromGrpc(status);
    return reply.jobs(0).id();
  }
  absl::StatusOr<std::string> Submit(std::shared_ptr<grpc::ChannelCredentials> credentials) {
    grpc::ClientContext context;
    v1::Job reply;
    const grpc::Status status = Stub(std::move(credentials))->SubmitJob(&context, {}, &reply);
    if (!status.ok()) return FromGrpc(status);
    return reply.error();
  }
  absl::Status Cancel(std::shared_ptr<grpc::ChannelCredentials> credentials, const std::string& job) {
    grpc::ClientContext context;
    v1::JobRequest request;
    request.set_job_id(job);
    v1::Job reply;
    return FromGrpc(Stub(std::move(credentials))->CancelJob(&context, request, &reply));
  }
  std::unique_ptr<v1::Jobs::Stub> Stub(std::shared_ptr<grpc::ChannelCredentials> credentials) {
    return v1::Jobs::NewStub(NewChannel(server_->address(), std::move(credentials)));
  }
  std::vector<nlohmann::json> Audited() {
    std::vector<nlohmann::json> lines;
    const std::string text = folder_.Read("audit.jsonl");
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      lines.push_back(nlohmann::json::parse(line));
    }
    return lines;
  }

  static constexpr char kAlices[] = "alices-own-token", kBobs[] = "bobs-own-token";
  const TemporaryFolder folder_;
  const TestAuthority authority_;
  Metrics metrics_;
  FakeJobs jobs_;
  std::atomic<absl::Duration> ahead_ = absl::ZeroDuration();  // the server's clock
  std::unique_ptr<Access> access_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(AccessTest, ACallerIsWhoItsCertificateOrTokenSays) {
  StartTls();
  EXPECT_EQ(*List(As(Role::kOperator)), "operator");
  EXPECT_EQ(*List(As(Role::kViewer)), "viewer");
  EXPECT_EQ(*List(With(kAlices)), "alice");
  EXPECT_EQ(*List(With(kBobs)), "bob");
  EXPECT_EQ(*Submit(With(kAlices)), "alice");
  // A token says more than the certificate of the machine that it is used on.
  EXPECT_EQ(*List(Open(Role::kWorker)->ForChannels(Role::kCoordinator, kBobs)), "bob");
}

TEST_F(AccessTest, WhoBringsNothingOrSomethingWrongIsUnknown) {
  StartTls();
  const absl::Status nothing = List(OpenWithoutIdentity()->ForChannels(Role::kCoordinator)).status();
  EXPECT_TRUE(absl::IsUnauthenticated(nothing)) << nothing;
  EXPECT_THAT(std::string(nothing.message()), AllOf(HasSubstr("--tls DIR"), HasSubstr("--token-file")));
  const absl::Status wrong = List(With("mallorys-token")).status();
  EXPECT_TRUE(absl::IsUnauthenticated(wrong)) << wrong;
  CertificateRequest without_role = TestAuthority::Request(Role::kOperator);
  without_role.uris = {"spiffe://elsewhere/operator"};
  const auto roleless = *Tls::Open(authority_.Place(folder_ / "roleless", without_role));
  const absl::Status no_role = List(roleless->ForChannels(Role::kCoordinator)).status();
  EXPECT_TRUE(absl::IsUnauthenticated(no_role)) << no_role;
  EXPECT_THAT(std::string(no_role.message()), HasSubstr("spiffe://millrace/ROLE"));
  CertificateRequest two_roles = TestAuthority::Request(Role::kOperator);
  two_roles.uris.push_back("spiffe://millrace/viewer");
  const auto both = *Tls::Open(authority_.Place(folder_ / "both", two_roles));
  EXPECT_TRUE(absl::IsUnauthenticated(List(both->ForChannels(Role::kCoordinator)).status()));
  EXPECT_THAT(metrics_.Text(), AllOf(HasSubstr("millrace_auth_failures_total{reason=\"missing\"} 1\n"),
                                     HasSubstr("millrace_auth_failures_total{reason=\"token\"} 1\n"),
                                     HasSubstr("millrace_auth_failures_total{reason=\"certificate\"} 2\n")));
  // Refusals are written down; tokens are not, neither good nor bad ones.
  EXPECT_EQ(Audited().size(), 4u);
  EXPECT_THAT(folder_.Read("audit.jsonl"), Not(HasSubstr("mallorys-token")));
}

TEST_F(AccessTest, APersonsCertificateThatHasEndedCountsForNothingOnAStandingConnectionEither) {
  StartTls();
  const auto viewer = Stub(As(Role::kViewer));
  const auto list = [](v1::Jobs::Stub* stub) {
    grpc::ClientContext context;
    v1::ListJobsReply reply;
    return FromGrpc(stub->ListJobs(&context, {}, &reply));
  };
  EXPECT_OK(list(viewer.get()));
  ahead_ = absl::Hours(2);
  const absl::Status ended = list(viewer.get());
  EXPECT_TRUE(absl::IsUnauthenticated(ended)) << ended;
  EXPECT_THAT(std::string(ended.message()),
              AllOf(HasSubstr("the certificate of 'viewer' ended at"), HasSubstr("connect again")));
  // A token is another matter.
  EXPECT_OK(List(With(kBobs)));
}

TEST_F(AccessTest, RefusalsOverHttpAreWrittenDownWithWhereTheyCameFrom) {
  EXPECT_TRUE(
      absl::IsUnauthenticated(access_->CheckToken("/millrace.v1.Jobs/ListJobs", "x", "http:192.0.2.7:5").status()));
  ASSERT_EQ(Audited().size(), 1u);
  EXPECT_EQ(Audited()[0]["peer"], "http:192.0.2.7:5");
}

TEST_F(AccessTest, ARoleDoesWhatTheTableSays) {
  StartTls();
  const absl::Status worker = Submit(As(Role::kWorker)).status();
  EXPECT_TRUE(absl::IsPermissionDenied(worker)) << worker;
  EXPECT_THAT(std::string(worker.message()),
              AllOf(HasSubstr("worker"), HasSubstr("Jobs/SubmitJob"), HasSubstr("operator may")));
  EXPECT_TRUE(absl::IsPermissionDenied(Cancel(As(Role::kViewer), "tiny")));
  EXPECT_TRUE(absl::IsPermissionDenied(Cancel(With(kBobs), "tiny")));
  EXPECT_TRUE(absl::IsPermissionDenied(List(As(Role::kShard)).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(List(As(Role::kCoordinator)).status()));
  EXPECT_TRUE(absl::IsNotFound(Cancel(As(Role::kOperator), "tiny")));
  EXPECT_THAT(metrics_.Text(), HasSubstr("millrace_auth_failures_total{reason=\"role\"} 5\n"));
}

TEST_F(AccessTest, WhatIsNotInTheTableNobodyMayCall) {
  StartTls();
  const std::shared_ptr<const Tls> tls = Open(Role::kOperator);
  const auto connection = NewChannel(server_->address(), tls->ForChannels(Role::kCoordinator));
  // A service that this server does not even have is refused in the same way.
  grpc::ClientContext context;
  v1::JoinReply reply;
  const grpc::Status status = v1::Cluster::NewStub(connection)->Join(&context, {}, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << status.error_message();
  EXPECT_EQ(FindMethodRule("/millrace.v1.Jobs/Unheard"), nullptr);
  EXPECT_EQ(FindMethodRule(""), nullptr);
}

TEST_F(AccessTest, ChangesAreWrittenDownWithWhoMadeThem) {
  StartTls();
  EXPECT_OK(Submit(With(kAlices)));
  EXPECT_FALSE(Cancel(As(Role::kOperator), "tiny").ok());
  EXPECT_OK(List(As(Role::kViewer)));
  const std::vector<nlohmann::json> lines = Audited();
  ASSERT_EQ(lines.size(), 2u);  // looking is not written down
  EXPECT_EQ(lines[0]["who"], "alice");
  EXPECT_EQ(lines[0]["role"], "operator");
  EXPECT_EQ(lines[0]["method"], "Jobs/SubmitJob");
  EXPECT_EQ(lines[0]["job"], "made");
  EXPECT_EQ(lines[0]["code"], "OK");
  EXPECT_THAT(lines[0]["peer"].get<std::string>(), HasSubstr("127.0.0.1:"));
  EXPECT_EQ(lines[1]["who"], "operator");
  EXPECT_EQ(lines[1]["job"], "tiny");
  EXPECT_EQ(lines[1]["code"], "NOT_FOUND");
  EXPECT_EQ(lines[1]["message"], "no such job");
  EXPECT_THAT(folder_.Read("audit.jsonl"), Not(HasSubstr(kAlices)));
}

TEST_F(AccessTest, WithoutTlsEverybodyIsAnOperatorWithoutAName) {
  Start(nullptr);
  EXPECT_EQ(*List(nullptr), "");
  EXPECT_EQ(*Submit(nullptr), "");
  const std::vector<nlohmann::json> lines = Audited();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["who"], "local");
}

}  // namespace
}  // namespace millrace
