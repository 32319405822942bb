#include "common/grpc_server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/grpc_status.h"
#include "common/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"
#include "testing/certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using text::TemporaryFolder;

// Answers ListJobs; GetJob answers when its call is cancelled.
class FakeJobs final : public v1::Jobs::Service {
 public:
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsReply* reply) override {
    reply->add_jobs()->set_id("tiny");
    return grpc::Status::OK;
  }
  grpc::Status GetJob(grpc::ServerContext* context, const v1::GetJobRequest*, v1::Job*) override {
    in_call.Notify();
    while (!context->IsCancelled()) std::this_thread::yield();
    return ToGrpc(absl::CancelledError("given up"));
  }
  absl::Notification in_call;
};

// Writes `request` into a call that streams both ways and gives the first answer, all as the bytes on the wire.
std::string FirstAnswer(const std::string& address, const std::string& method, const std::string& request) {
  grpc::GenericStub stub(NewChannel(address));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
  const auto call = stub.PrepareCall(&context, method, &queue);
  const auto done = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  std::string answer;
  call->StartCall(nullptr);
  bool well = done();
  if (well) {
    const grpc::Slice slice(request);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    well = done();
  }
  grpc::ByteBuffer buffer;
  if (well) {
    call->Read(&buffer, nullptr);
    well = done();
  }
  if (well) {
    std::vector<grpc::Slice> slices;
    EXPECT_OK(buffer.Dump(&slices));
    for (const grpc::Slice& slice : slices) answer.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  EXPECT_TRUE(well) << method << ": " << status.error_message();
  queue.Shutdown();
  while (done()) {
  }
  return answer;
}

class GrpcServerTest : public ::testing::Test {
 protected:
  std::unique_ptr<GrpcServer> Start(const std::string& listen, const std::string& address_file = "") {
    auto server = GrpcServer::Start({.listen = listen, .address_file = address_file, .services = {&jobs_}});
    EXPECT_OK(server);
    return server.ok() ? *std::move(server) : nullptr;
  }
  FakeJobs jobs_;
};

TEST_F(GrpcServerTest, ServesOnAPortOfTheSystemsChoice) {
  const auto server = Start("127.0.0.1:0");
  EXPECT_THAT(server->address(), StartsWith("127.0.0.1:"));
  EXPECT_NE(server->address(), "127.0.0.1:0");
  const auto stub = v1::Jobs::NewStub(NewChannel(server->address()));
  grpc::ClientContext context;
  v1::ListJobsReply reply;
  const grpc::Status status = stub->ListJobs(&context, {}, &reply);
  ASSERT_OK(status);
  EXPECT_EQ(reply.jobs(0).id(), "tiny");
}

TEST_F(GrpcServerTest, WritesItsAddressIntoAFileOnceItServes) {
  const TemporaryFolder folder;
  const auto server = Start("localhost:0", folder / "address");
  EXPECT_THAT(server->address(), StartsWith("localhost:"));
  EXPECT_EQ(folder.Read("address"), server->address() + "\n");
  const absl::Status status =
      GrpcServer::Start({.listen = "127.0.0.1:0", .address_file = folder / "no/such/folder", .services = {&jobs_}})
          .status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder / "no/such/folder"));
}

TEST_F(GrpcServerTest, AnAddressThatCannotBeBoundIsNamed) {
  const auto server = Start("127.0.0.1:0");
  for (const std::string& address : {server->address(), std::string("192.0.2.1:1")}) {
    const absl::Status status = GrpcServer::Start({.listen = address}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("cannot serve at " + address));
  }
  for (const char* address : {"", "localhost", ":80"}) {
    const absl::Status status = GrpcServer::Start({.listen = address}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not HOST:PORT"));
  }
}

TEST_F(GrpcServerTest, SaysThatItIsHealthy) {
  const auto server = Start("127.0.0.1:0");
  // grpc.health.v1.HealthCheckResponse{status: SERVING} for the server as a whole.
  EXPECT_EQ(FirstAnswer(server->address(), "/grpc.health.v1.Health/Watch", ""), "\x08\x01");
}

TEST_F(GrpcServerTest, TellsItsServicesByReflection) {
  const auto server = Start("127.0.0.1:0");
  // ServerReflectionRequest{list_services: ""}.
  const std::string answer = FirstAnswer(
      server->address(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", std::string("\x3a\0", 2));
  EXPECT_THAT(answer, HasSubstr("millrace.v1.Jobs"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(GrpcServerTest, ShutdownCancelsWhatIsStillInFlight) {
  const auto server = Start("127.0.0.1:0");
  const auto stub = v1::Jobs::NewStub(NewChannel(server->address()));
  grpc::Status status;
  std::thread call([&] {
    grpc::ClientContext context;
    v1::Job job;
    status = stub->GetJob(&context, {}, &job);
  });
  jobs_.in_call.WaitForNotification();
  server->Shutdown(absl::Milliseconds(10));
  call.join();
  EXPECT_FALSE(status.ok());
  // The port is free again.
  EXPECT_EQ(Start(server->address())->address(), server->address());
}

TEST(GrpcServer, WithMutualTlsAnswersOnlyWhoShowsACertificate) {
  const TemporaryFolder folder;
  const absl::StatusOr<Certificates> certificates = Certificates::Make(folder.path());
  ASSERT_OK(certificates);
  FakeJobs jobs;
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&jobs};
  options.credentials = certificates->ForServer();
  const auto server = GrpcServer::Start(options);
  ASSERT_OK(server);
  const auto call = [&](std::shared_ptr<grpc::ChannelCredentials> credentials) {
    grpc::ClientContext context;
    v1::ListJobsReply reply;
    return v1::Jobs::NewStub(NewChannel((*server)->address(), std::move(credentials)))
        ->ListJobs(&context, {}, &reply)
        .error_code();
  };
  EXPECT_EQ(call(certificates->ForClient()), grpc::StatusCode::OK);
  EXPECT_EQ(call(grpc::SslCredentials({certificates->authority, "", ""})), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(call(nullptr), grpc::StatusCode::UNAVAILABLE);
}

TEST(GrpcServer, CountsCallsByMethodAndCode) {
  FakeJobs jobs;
  Metrics metrics;
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&jobs};
  options.metrics = &metrics;
  auto server = GrpcServer::Start(options);
  ASSERT_OK(server);
  const auto channel = NewChannel((*server)->address());
  const auto stub = v1::Jobs::NewStub(channel);
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::ListJobsReply reply;
    EXPECT_OK(stub->ListJobs(&context, {}, &reply));
  }
  {
    grpc::ClientContext context;
    v1::Job reply;
    EXPECT_EQ(stub->PauseJob(&context, {}, &reply).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(50)));
    v1::Job reply;
    EXPECT_EQ(stub->GetJob(&context, {}, &reply).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  for (int i = 0; i < 5; ++i) {
    // Nobody can make a series of a name of their own.
    grpc::GenericStub generic(channel);
    grpc::CompletionQueue queue;
    grpc::ClientContext context;
    const grpc::Slice nothing;
    const grpc::ByteBuffer request(&nothing, 1);
    const auto call = generic.PrepareUnaryCall(&context, absl::StrCat("/made.up/Method", i), request, &queue);
    call->StartCall();
    grpc::ByteBuffer reply;
    grpc::Status status;
    void* tag = nullptr;
    bool ok = false;
    call->Finish(&reply, &status, nullptr);
    EXPECT_TRUE(queue.Next(&tag, &ok));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
    queue.Shutdown();
  }
  server->reset();  // every call has ended
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("millrace_rpcs_total{code=\"OK\",method=\"Jobs/ListJobs\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("millrace_rpc_duration_seconds_count{method=\"Jobs/ListJobs\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("millrace_rpcs_total{code=\"UNIMPLEMENTED\",method=\"Jobs/PauseJob\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("millrace_rpcs_total{code=\"CANCELLED\",method=\"Jobs/GetJob\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("millrace_rpcs_total{code=\"UNIMPLEMENTED\",method=\"other\"} 5\n"));
  EXPECT_THAT(text, Not(HasSubstr("made.up")));
}

TEST(GrpcServer, MayHaveAsManyConnectionsAsTheHardLimitAllows) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low = {std::min<rlim_t>(256, before.rlim_max), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  EXPECT_OK(GrpcServer::Start(options));
  rlimit after;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, after.rlim_max);
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST(GrpcStatus, SurvivesTheWayThereAndBack) {
  EXPECT_OK(FromGrpc(ToGrpc(absl::OkStatus())));
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
  EXPECT_EQ(ToGrpc(absl::NotFoundError("x")).error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace millrace
