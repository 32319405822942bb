#include "ps/shard.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "ps/conformance.h"
#include "ps/shards.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

// A coordinator that knows one member.
class OneMemberCluster : public v1::Cluster::Service {
 public:
  grpc::Status Join(grpc::ServerContext*, const v1::JoinRequest* request, v1::JoinReply* reply) override {
    absl::MutexLock lock(&mutex_);
    joined_ = *request;
    if (!refusal_.ok()) return ToGrpc(refusal_);
    reply->set_member_id("shard-1");
    reply->set_heartbeat_ms(20);
    return grpc::Status::OK;
  }
  grpc::Status Attend(grpc::ServerContext* context,
                      grpc::ServerReaderWriter<v1::Notice, v1::Heartbeat>* stream) override {
    uint64_t sent = 0;
    for (v1::Heartbeat heartbeat; stream->Read(&heartbeat);) {
      absl::MutexLock lock(&mutex_);
      attends_ = true;
      if (epoch_ == sent) continue;
      v1::Notice notice;
      notice.set_epoch(sent = epoch_);
      stream->Write(notice);
    }
    absl::MutexLock lock(&mutex_);
    attends_ = false;
    return grpc::Status::OK;
  }

  // Ends at Release(), if Keep() came before.
  grpc::Status NextWork(grpc::ServerContext* context, const v1::NextWorkRequest* request, v1::NextWorkReply*) override {
    absl::MutexLock lock(&mutex_);
    drained_ = *request;
    while (!released_ && !context->IsCancelled()) changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(10));
    return grpc::Status::OK;
  }

  void Keep() {
    absl::MutexLock lock(&mutex_);
    released_ = false;
  }
  v1::NextWorkRequest AwaitDrain() {
    absl::MutexLock lock(&mutex_);
    while (!drained_.drain()) changed_.WaitWithTimeout(&mutex_, absl::Milliseconds(10));
    return drained_;
  }
  void Release() {
    absl::MutexLock lock(&mutex_);
    released_ = true;
    changed_.SignalAll();
  }
  void Announce(uint64_t epoch) {
    absl::MutexLock lock(&mutex_);
    epoch_ = epoch;
  }
  void Refuse(const absl::Status& refusal) {
    absl::MutexLock lock(&mutex_);
    refusal_ = refusal;
  }
  v1::JoinRequest AwaitMember() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&attends_));
    return joined_;
  }
  bool attends() {
    absl::MutexLock lock(&mutex_);
    return attends_;
  }

 private:
  absl::Mutex mutex_;
  bool attends_ ABSL_GUARDED_BY(mutex_) = false;
  bool released_ ABSL_GUARDED_BY(mutex_) = true;
  v1::NextWorkRequest drained_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar changed_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  v1::JoinRequest joined_ ABSL_GUARDED_BY(mutex_);
};

class ShardTest : public ::testing::Test {
 protected:
  ShardTest() {
    GrpcServerOptions serving;
    serving.listen = "127.0.0.1:0";
    serving.services = {&cluster_};
    server_ = *GrpcServer::Start(serving);
    options_.coordinator = server_->address();
    options_.name = "s-1";
    options_.listen = "127.0.0.1:0";
    options_.stop = &stop_;
  }
  ~ShardTest() override { Stop().IgnoreError(); }

  void Run() {
    thread_ = std::thread([this] { status_ = RunShard(options_); });
  }
  absl::Status Stop() {
    if (!stop_.HasBeenNotified()) stop_.Notify();
    return Join();
  }
  absl::Status Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  static v1::ShardStatus StatusOf(v1::ParameterServer::Stub* stub) {
    grpc::ClientContext context;
    v1::ShardStatus status;
    EXPECT_OK(stub->GetStatus(&context, {}, &status));
    return status;
  }

  OneMemberCluster cluster_;
  std::unique_ptr<GrpcServer> server_;
  absl::Notification stop_;
  ShardOptions options_;
  absl::Status status_;
  std::thread thread_;
};

TEST_F(ShardTest, IntroducesItselfAndLeavesWhenAsked) {
  const std::string file = absl::StrCat(::testing::TempDir(), "/shard-address-", getpid());
  options_.address_file = file;
  options_.threads = 2;
  Run();
  const v1::JoinRequest joined = cluster_.AwaitMember();
  EXPECT_EQ(joined.role(), v1::SHARD);
  EXPECT_EQ(joined.name(), "s-1");
  EXPECT_EQ(joined.conformance_digest(), ConformanceDigest());
  EXPECT_EQ(joined.threads(), 2u);
  EXPECT_THAT(joined.build(), ::testing::StartsWith("millrace"));
  std::string written;
  std::ifstream(file) >> written;
  EXPECT_EQ(joined.address(), written);
  EXPECT_OK(Stop()) << status_;
  EXPECT_FALSE(cluster_.attends());
  std::filesystem::remove(file);
}

TEST_F(ShardTest, OnEveryNetworkItGoesByTheMachinesName) {
  options_.listen = "0.0.0.0:0";
  options_.plaintext = true;
  Run();
  char name[256] = "";
  ASSERT_EQ(gethostname(name, sizeof(name) - 1), 0);
  EXPECT_THAT(cluster_.AwaitMember().address(), ::testing::StartsWith(absl::StrCat(name, ":")));
}

TEST_F(ShardTest, GoesByTheNameThatItIsTold) {
  options_.listen = "0.0.0.0:0";
  options_.plaintext = true;
  options_.advertise = "shard-0.shards.example:7401";
  Run();
  EXPECT_EQ(cluster_.AwaitMember().address(), "shard-0.shards.example:7401");
}

TEST_F(ShardTest, StaysAndServesUntilItMayGo) {
  cluster_.Keep();
  Run();
  const auto stub = v1::ParameterServer::NewStub(NewChannel(cluster_.AwaitMember().address()));
  stop_.Notify();
  EXPECT_EQ(cluster_.AwaitDrain().member_id(), "shard-1");
  EXPECT_TRUE(cluster_.attends());
  EXPECT_EQ(StatusOf(stub.get()).epoch(), 0u);
  cluster_.Release();
  EXPECT_OK(Join()) << status_;
  EXPECT_FALSE(cluster_.attends());
}

TEST_F(ShardTest, GoesWhenItsGraceIsOver) {
  cluster_.Keep();
  options_.grace = absl::Milliseconds(200);
  Run();
  cluster_.AwaitMember();
  const absl::Time asked = absl::Now();
  EXPECT_OK(Stop()) << status_;
  EXPECT_GE(absl::Now() - asked, absl::Milliseconds(200));
  EXPECT_LT(absl::Now() - asked, absl::Seconds(20));
}

TEST_F(ShardTest, AnnouncedEpochFencesOlderOnes) {
  Run();
  const auto stub = v1::ParameterServer::NewStub(NewChannel(cluster_.AwaitMember().address()));
  cluster_.Announce(9);
  const absl::Time until = absl::Now() + absl::Seconds(20);
  while (StatusOf(stub.get()).epoch() != 9 && absl::Now() < until) std::this_thread::yield();
  EXPECT_EQ(StatusOf(stub.get()).epoch(), 9u);
}

TEST_F(ShardTest, StopsSoonWhileCallsWait) {
  Run();
  const std::string address = cluster_.AwaitMember().address();
  const auto stub = v1::ParameterServer::NewStub(NewChannel(address));
  v1::TensorTable table;
  AddTensor("only", {10}, v1::Tensor::VECTOR, true, 0, &table);
  v1::ConfigureRequest configuration;
  configuration.set_epoch(1);
  *configuration.mutable_table() = table;
  *configuration.mutable_optimizer() = OptimizerOf("adamw");
  configuration.set_units_per_step(1);
  configuration.set_shard_count(1);
  grpc::ClientContext configuring;
  v1::ConfigureReply configured;
  ASSERT_OK(stub->Configure(&configuring, configuration, &configured));

  grpc::ClientContext loading;
  v1::LoadReply loaded;
  const auto loader = stub->Load(&loading, &loaded);
  v1::LoadRequest load;
  load.set_epoch(1);
  load.set_weights(std::string(40, '\0'));
  load.set_crc32c(Crc32c(load.weights().data(), 40));
  loader->Write(load);
  loader->WritesDone();
  ASSERT_OK(loader->Finish());
  ASSERT_TRUE(loaded.complete());

  // A pull of a version that never comes, and a push that says nothing more after its first block.
  grpc::ClientContext pulling, pushing;
  v1::PullRequest pull;
  pull.set_epoch(1);
  pull.set_version(3);
  const auto puller = stub->Pull(&pulling, pull);
  v1::PushReply pushed;
  const auto pusher = stub->Push(&pushing, &pushed);
  v1::PushRequest push;
  push.set_epoch(1);
  push.set_values(std::string(80, '\0'));
  push.set_crc32c(Crc32c(push.values().data(), 80));
  ASSERT_TRUE(pusher->Write(push));
  // It has arrived when the norms can be had.
  const absl::Time until = absl::Now() + absl::Seconds(20);
  for (grpc::Status status(grpc::StatusCode::UNKNOWN, ""); !status.ok();) {
    ASSERT_LT(absl::Now(), until) << status.error_message();
    grpc::ClientContext asking;
    v1::NormsRequest request;
    request.set_epoch(1);
    v1::NormsReply reply;
    status = stub->Norms(&asking, request, &reply);
  }
  const absl::Time begun = absl::Now();
  EXPECT_OK(Stop()) << status_;
  EXPECT_LT(absl::Now() - begun, absl::Seconds(10));
  const grpc::Status pulled = puller->Finish();
  EXPECT_EQ(pulled.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(pulled.error_message(), "the shard is shutting down");
  EXPECT_FALSE(pusher->Finish().ok());
}

TEST_F(ShardTest, RefusedShardSaysWhy) {
  cluster_.Refuse(absl::PermissionDeniedError("computes other bits"));
  Run();
  const absl::Status refused = Join();
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr("computes other bits"));
}

TEST_F(ShardTest, StopsWhileThereIsNoCoordinator) {
  options_.coordinator = "127.0.0.1:1";
  Run();
  EXPECT_OK(Stop()) << status_;
}

TEST_F(ShardTest, TakenAddressIsNamed) {
  options_.listen = server_->address();
  Run();
  const absl::Status failed = Join();
  EXPECT_TRUE(absl::IsUnavailable(failed)) << failed;
  EXPECT_THAT(std::string(failed.message()), ::testing::HasSubstr(server_->address()));
}

}  // namespace
}  // namespace millrace::ps
