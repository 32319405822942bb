#include "coordinator/jobs_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/access.h"
#include "common/credentials.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/role_certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JobsServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 1; i <= 5; ++i) {
      v1::SubmitJobRequest request = jobs_.Request();
      request.add_overrides(absl::StrCat("name=job", i));
      (*request.mutable_labels())["parity"] = i % 2 == 0 ? "even" : "odd";
      ASSERT_OK(jobs_.queue().Submit(request, i < 3 ? "ann" : "bob"));
    }
  }
  JobsService::Parts Parts() {
    JobsService::Parts parts;
    parts.queue = &jobs_.queue();
    parts.book = &jobs_.book();
    parts.members = &members_;
    parts.wanted_shards = 2;
    return parts;
  }
  std::vector<std::string> List(const v1::ListJobsRequest& request) {
    reply_.Clear();
    const grpc::Status status = service_.ListJobs(nullptr, &request, &reply_);
    EXPECT_OK(status);
    std::vector<std::string> ids;
    for (const v1::Job& job : reply_.jobs()) ids.push_back(job.id());
    return ids;
  }

  SimulatedJobs jobs_{[](const v1::JobSpec&, uint64_t) { return 1.0; }};
  Members members_{Members::Options()};
  JobsService service_{Parts()};
  v1::ListJobsReply reply_;
};

TEST_F(JobsServiceTest, JobsAreListedByWhatTheyAre) {
  v1::ListJobsRequest request;
  EXPECT_THAT(List(request), ElementsAre("job1", "job2", "job3", "job4", "job5"));
  (*request.mutable_labels())["parity"] = "odd";
  EXPECT_THAT(List(request), ElementsAre("job1", "job3", "job5"));
  request.set_user("bob");
  EXPECT_THAT(List(request), ElementsAre("job3", "job5"));
  EXPECT_EQ(reply_.total(), 2u);
  request.set_name_prefix("job5");
  EXPECT_THAT(List(request), ElementsAre("job5"));
  request.Clear();
  ASSERT_OK(jobs_.queue().Pause("job2"));
  request.add_states(v1::Job::PAUSED);
  request.add_states(v1::Job::RUNNING);
  EXPECT_THAT(List(request), ElementsAre("job2"));
}

TEST_F(JobsServiceTest, PagesGiveEachJobOnce) {
  for (const bool newest_first : {false, true}) {
    v1::ListJobsRequest request;
    request.set_page_size(2);
    request.set_newest_first(newest_first);
    std::vector<std::string> ids;
    for (int page = 0; page < 3; ++page) {
      for (const std::string& id : List(request)) ids.push_back(id);
      EXPECT_EQ(reply_.total(), 5u);
      request.set_page_token(reply_.next_page_token());
    }
    EXPECT_EQ(reply_.next_page_token(), "");
    if (newest_first) std::reverse(ids.begin(), ids.end());
    EXPECT_THAT(ids, ElementsAre("job1", "job2", "job3", "job4", "job5"));
  }
  v1::ListJobsRequest request;
  request.set_page_token("job9");
  EXPECT_EQ(service_.ListJobs(nullptr, &request, &reply_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.Clear();
  request.set_page_size(1001);
  EXPECT_THAT(service_.ListJobs(nullptr, &request, &reply_).error_message(), HasSubstr("at most 1000"));
}

TEST_F(JobsServiceTest, LivingMembersAreListed) {
  v1::JoinRequest join;
  join.set_role(v1::WORKER);
  join.set_name("w");
  join.set_processor("Zen");
  join.set_threads(3);
  ASSERT_OK(members_.Join(join, absl::Now()));
  join.set_role(v1::SHARD);
  join.set_name("s");
  join.set_address("10.0.0.2:7401");
  ASSERT_OK(members_.Join(join, absl::Now()));
  v1::ListMembersReply reply;
  ASSERT_OK(service_.ListMembers(nullptr, nullptr, &reply));
  EXPECT_EQ(reply.wanted_shards(), 2u);
  ASSERT_EQ(reply.members_size(), 2);
  EXPECT_EQ(reply.members(0).role(), "shard");
  EXPECT_EQ(reply.members(0).address(), "10.0.0.2:7401");
  EXPECT_EQ(reply.members(1).name(), "w");
  EXPECT_EQ(reply.members(1).processor(), "Zen");
  EXPECT_EQ(reply.members(1).threads(), 3u);
}

// Calls over TLS by people with tokens and certificates.
class JobsServiceOverTlsTest : public JobsServiceTest {
 protected:
  void SetUp() override {
    JobsServiceTest::SetUp();
    GiveTokens("operator");
    AccessOptions access;
    access.metrics = &metrics_;
    access.tokens = *Tokens::Open(folder_ / "tokens");
    access.audit = *AuditLog::Open(folder_ / "audit.jsonl");
    access.now = [this] { return absl::Now() + ahead_.load(); };
    access_ = std::make_unique<Access>(std::move(access));
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    options.access = access_.get();
    tls_ = *Tls::Open(authority_.Place(folder_ / "coordinator", Role::kCoordinator));
    options.credentials = tls_->ForServers();
    auto server = GrpcServer::Start(options);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }
  void TearDown() override {
    service_.Close();
    server_.reset();
  }
  // Ann's role; empty: her token is taken back.
  void GiveTokens(const std::string& anns_role) {
    const std::string ann = anns_role.empty() ? "" : *TokenLine("ann", anns_role, "anns-token");
    folder_.Write("tokens", absl::StrCat(ann, "\n", *TokenLine("bob", "viewer", "bobs-token"), "\n"));
  }
  std::unique_ptr<v1::Jobs::Stub> With(const std::string& token) {
    const auto tls = *Tls::Open(authority_.PlaceAuthority(folder_ / "authority"), {.needs_identity = false});
    return v1::Jobs::NewStub(NewChannel(server_->address(), tls->ForChannels(Role::kCoordinator, token)));
  }
  // Watches a job that waits: its stream has one event, and goes on.
  static std::unique_ptr<grpc::ClientReader<v1::JobEvent>> Watch(v1::Jobs::Stub* stub, grpc::ClientContext* context) {
    v1::WatchJobRequest request;
    request.set_job_id("job1");
    auto stream = stub->WatchJob(context, request);
    v1::JobEvent event;
    EXPECT_TRUE(stream->Read(&event));
    return stream;
  }

  const text::TemporaryFolder folder_;
  const TestAuthority authority_;
  std::atomic<absl::Duration> ahead_ = absl::ZeroDuration();  // the server's clock
  Metrics metrics_;
  std::unique_ptr<Access> access_;
  std::shared_ptr<const Tls> tls_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(JobsServiceOverTlsTest, AStreamEndsWithItsTokenAndNoOther) {
  const auto ann = With("anns-token"), bob = With("bobs-token");
  grpc::ClientContext anns_context, bobs_context;
  const auto anns = Watch(ann.get(), &anns_context), bobs = Watch(bob.get(), &bobs_context);
  GiveTokens("viewer");  // who may watch as well
  const absl::Time looked_again = absl::Now() + absl::Seconds(2);
  v1::JobEvent event;
  // Reads, rather than waits, until the server has looked again.
  while (absl::Now() < looked_again) {
    jobs_.book().Log("job1", "info", "still there");
    ASSERT_TRUE(anns->Read(&event));
    ASSERT_TRUE(bobs->Read(&event));
  }
  GiveTokens("");
  while (anns->Read(&event)) {
  }
  const grpc::Status ended = anns->Finish();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAUTHENTICATED) << ended.error_message();
  EXPECT_EQ(ended.error_message(), "nobody has this token");
  const std::string audited = folder_.Read("audit.jsonl");
  EXPECT_THAT(audited, HasSubstr(R"("method":"Jobs/WatchJob","code":"UNAUTHENTICATED")"));
  EXPECT_THAT(audited, HasSubstr(R"("peer":"ipv4:127.0.0.1:)"));
  jobs_.book().Log("job1", "info", "for bob");
  do {
    ASSERT_TRUE(bobs->Read(&event));
  } while (event.log().text() != "for bob");
}

TEST_F(JobsServiceOverTlsTest, AStreamEndsWithItsCertificate) {
  const auto tls = *Tls::Open(authority_.Place(folder_ / "viewer", Role::kViewer));
  const auto viewer = v1::Jobs::NewStub(NewChannel(server_->address(), tls->ForChannels(Role::kCoordinator)));
  grpc::ClientContext context;
  const auto stream = Watch(viewer.get(), &context);
  ahead_ = absl::Hours(2);
  v1::JobEvent event;
  while (stream->Read(&event)) {
  }
  const grpc::Status ended = stream->Finish();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(ended.error_message(), HasSubstr("the certificate of 'viewer' ended at"));
}

}  // namespace
}  // namespace millrace::coordinator
