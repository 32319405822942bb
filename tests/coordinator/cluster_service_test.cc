#include "coordinator/cluster_service.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/access.h"
#include "common/credentials.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gtest/gtest.h"
#include "testing/role_certificates.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

// Shows the call that came last.
class ShownService : public ClusterService {
 public:
  using ClusterService::ClusterService;
  grpc::ServerUnaryReactor* NextWork(grpc::CallbackServerContext* context, const v1::NextWorkRequest* request,
                                     v1::NextWorkReply* reply) override {
    last = context;
    return ClusterService::NextWork(context, request, reply);
  }
  std::atomic<grpc::CallbackServerContext*> last = nullptr;
};

class ClusterServiceTest : public ::testing::Test {
 protected:
  ClusterServiceTest() {
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    auto server = GrpcServer::Start(options);
    EXPECT_OK(server);
    server_ = *std::move(server);
    stub_ = v1::Cluster::NewStub(NewChannel(server_->address()));
    auto context = std::make_shared<v1::PhaseContext>();
    context->set_epoch(1);
    board_.SetContext(std::move(context));
  }

  // A worker's first call for work.
  v1::NextWorkRequest Joined(const std::string& name) {
    v1::JoinRequest join;
    join.set_role(v1::WORKER);
    join.set_name(name);
    v1::NextWorkRequest request;
    request.set_member_id(members_.Join(join, absl::Now())->member_id());
    request.set_wait_ms(60'000);
    return request;
  }
  void OfferOne() {
    v1::WorkUnit unit;
    unit.set_kind(v1::WorkUnit::TRAIN);
    unit.set_epoch(1);
    board_.Offer({unit});
  }

  WorkBoard board_;
  Members members_{{.on_join = [this](const Member& member) { board_.Admit(member.id); },
                    .on_loss = [this](const Member& member, absl::string_view) { board_.Dismiss(member.id); }}};
  ShownService service_{&members_, &board_, 1};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
};

TEST_F(ClusterServiceTest, AUnitGoesToTheNextWorkerWhenACallWasGivenUp) {
  const v1::NextWorkRequest first = Joined("impatient"), second = Joined("patient");
  v1::NextWorkReply reply;
  grpc::ClientContext given_up;
  std::thread impatient([&] {
    v1::NextWorkReply none;
    EXPECT_EQ(stub_->NextWork(&given_up, first, &none).error_code(), grpc::StatusCode::CANCELLED);
  });
  while (service_.last == nullptr) std::this_thread::yield();
  given_up.TryCancel();
  while (!service_.last.load()->IsCancelled()) std::this_thread::yield();
  impatient.join();
  std::thread patient([&] {
    grpc::ClientContext context;
    const grpc::Status status = stub_->NextWork(&context, second, &reply);
    EXPECT_OK(status);
    EXPECT_EQ(reply.units_size(), 1);
  });
  OfferOne();
  patient.join();
  service_.Close();
}

TEST_F(ClusterServiceTest, AMemberHasOneStream) {
  const std::string id = Joined("worker").member_id();
  const auto beat = [&](grpc::ClientReaderWriter<v1::Heartbeat, v1::Notice>* stream) {
    v1::Heartbeat heartbeat;
    heartbeat.set_member_id(id);
    stream->Write(heartbeat);
  };
  service_.Announce(1);  // so that a stream that was taken says something
  grpc::ClientContext context, other_context;
  const auto stream = stub_->Attend(&context);
  beat(stream.get());
  v1::Notice notice;
  ASSERT_TRUE(stream->Read(&notice));
  const auto other = stub_->Attend(&other_context);
  beat(other.get());
  EXPECT_FALSE(other->Read(&notice));
  EXPECT_EQ(other->Finish().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  // Its end was not the member's.
  EXPECT_EQ(members_.Living(v1::WORKER).size(), 1u);
  stream->WritesDone();
  EXPECT_OK(stream->Finish());
}

// Members with certificates of their own.
class CertifiedClusterTest : public ::testing::Test {
 protected:
  CertifiedClusterTest() {
    AccessOptions access;
    access.metrics = &metrics_;
    access_ = std::make_unique<Access>(std::move(access));
    server_tls_ = *Tls::Open(authority_.Place(folder_ / "coordinator", Role::kCoordinator));
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    options.access = access_.get();
    options.credentials = server_tls_->ForServers();
    auto server = GrpcServer::Start(options);
    EXPECT_OK(server);
    server_ = *std::move(server);
  }
  ~CertifiedClusterTest() override { service_.Close(); }

  std::unique_ptr<v1::Cluster::Stub> As(Role role, const std::string& name) {
    CertificateRequest request = TestAuthority::Request(role);
    request.common_name = name;
    const auto tls = *Tls::Open(authority_.Place(folder_ / name, request));
    return v1::Cluster::NewStub(NewChannel(server_->address(), tls->ForChannels(Role::kCoordinator)));
  }
  static absl::StatusOr<std::string> Join(v1::Cluster::Stub* stub, v1::MemberRole role, const std::string& name) {
    grpc::ClientContext context;
    v1::JoinRequest request;
    request.set_role(role);
    request.set_name(name);
    request.set_address("127.0.0.1:1");
    v1::JoinReply reply;
    const grpc::Status status = stub->Join(&context, request, &reply);
    if (!status.ok()) return FromGrpc(status);
    return reply.member_id();
  }
  static grpc::StatusCode NextWork(v1::Cluster::Stub* stub, const v1::NextWorkRequest& request,
                                   v1::NextWorkReply* reply) {
    grpc::ClientContext context;
    return stub->NextWork(&context, request, reply).error_code();
  }
  static grpc::StatusCode Attend(v1::Cluster::Stub* stub, const std::string& id) {
    grpc::ClientContext context;
    const auto stream = stub->Attend(&context);
    v1::Heartbeat heartbeat;
    heartbeat.set_member_id(id);
    stream->Write(heartbeat);
    stream->WritesDone();
    return stream->Finish().error_code();
  }

  const text::TemporaryFolder folder_;
  const TestAuthority authority_;
  Metrics metrics_;
  WorkBoard board_;
  Members members_{{.on_join =
                        [this](const Member& member) {
                          if (member.role == v1::WORKER) board_.Admit(member.id);
                        },
                    .on_loss = [this](const Member& member, absl::string_view) { board_.Dismiss(member.id); }}};
  ClusterService service_{&members_, &board_, 1};
  std::unique_ptr<Access> access_;
  std::shared_ptr<const Tls> server_tls_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(CertifiedClusterTest, NobodySpeaksForAnotherMember) {
  const auto worker = As(Role::kWorker, "worker-a"), other = As(Role::kWorker, "worker-b"),
             shard = As(Role::kShard, "shard-a");
  EXPECT_TRUE(absl::IsPermissionDenied(Join(worker.get(), v1::SHARD, "w").status()));
  EXPECT_TRUE(absl::IsPermissionDenied(Join(shard.get(), v1::WORKER, "s").status()));
  const std::string id = *Join(worker.get(), v1::WORKER, "w"), shard_id = *Join(shard.get(), v1::SHARD, "s");
  auto context = std::make_shared<v1::PhaseContext>();
  context->set_epoch(1);
  board_.SetContext(std::move(context));
  v1::WorkUnit unit;
  unit.set_kind(v1::WorkUnit::TRAIN);
  unit.set_epoch(1);
  board_.Offer({unit});

  v1::NextWorkRequest request;
  v1::NextWorkReply reply;
  request.set_member_id(id);
  for (v1::Cluster::Stub* const stranger : {other.get(), shard.get()}) {
    EXPECT_EQ(NextWork(stranger, request, &reply), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_EQ(Attend(stranger, id), grpc::StatusCode::PERMISSION_DENIED);
  }
  EXPECT_EQ(members_.Living(v1::WORKER).size(), 1u) << "the end of a stranger's stream is not the member's";
  ASSERT_EQ(NextWork(worker.get(), request, &reply), grpc::StatusCode::OK);
  ASSERT_EQ(reply.units_size(), 1);

  // A shard is a member, but gets no work, and what it says of others' is not heard.
  v1::NextWorkRequest shards;
  shards.set_member_id(shard_id);
  v1::WorkResult* const result = shards.add_results();
  result->set_lease(reply.units(0).lease());
  result->set_epoch(1);
  result->set_kind(v1::WorkUnit::TRAIN);
  v1::NextWorkReply nothing;
  EXPECT_EQ(NextWork(shard.get(), shards, &nothing), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(board_.counts().stale, 1u);
  *request.add_results() = *result;
  EXPECT_EQ(NextWork(worker.get(), request, &nothing), grpc::StatusCode::OK);
  EXPECT_EQ(board_.counts().accepted, 1u);
}

TEST_F(CertifiedClusterTest, ARenewedCertificateIsTheSameMembers) {
  const auto worker = As(Role::kWorker, "worker-a");
  v1::NextWorkRequest request;
  request.set_member_id(*Join(worker.get(), v1::WORKER, "w"));
  const auto renewed = As(Role::kWorker, "worker-a");
  v1::NextWorkReply reply;
  EXPECT_EQ(NextWork(renewed.get(), request, &reply), grpc::StatusCode::OK);
}

TEST_F(ClusterServiceTest, CloseEndsWaiting) {
  const v1::NextWorkRequest request = Joined("waits");
  std::thread waits([&] {
    grpc::ClientContext context;
    v1::NextWorkReply reply;
    EXPECT_EQ(stub_->NextWork(&context, request, &reply).error_code(), grpc::StatusCode::NOT_FOUND);
  });
  service_.Close();
  waits.join();
}

}  // namespace
}  // namespace millrace::coordinator
