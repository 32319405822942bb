#include "coordinator/cluster_service.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "gtest/gtest.h"

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

class ClusterServiceTest : public testing::Test {
 protected:
  ClusterServiceTest() {
    GrpcServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service_};
    auto server = GrpcServer::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
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
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.units_size(), 1);
  });
  OfferOne();
  patient.join();
  service_.Close();
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
