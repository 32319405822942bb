#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "client/coordinator_client.h"
#include "client/restarting_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "testing/status.h"

namespace millrace::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

// Gives each member that joins a new id, and keeps what it hears.
class FakeCluster final : public v1::Cluster::Service {
 public:
  grpc::Status Join(grpc::ServerContext*, const v1::JoinRequest* request, v1::JoinReply* reply) override {
    absl::MutexLock lock(&mutex_);
    joins_.push_back(request->name());
    if (!refusals_.empty()) {
      const absl::Status refusal = refusals_.front();
      refusals_.erase(refusals_.begin());
      return ToGrpc(refusal);
    }
    reply->set_member_id(absl::StrCat("member-", ++ids_));
    reply->set_heartbeat_ms(10);
    return grpc::Status::OK;
  }

  grpc::Status Attend(grpc::ServerContext* context,
                      grpc::ServerReaderWriter<v1::Notice, v1::Heartbeat>* stream) override {
    v1::Heartbeat beat;
    while (stream->Read(&beat)) {
      std::vector<v1::Notice> notices;
      {
        absl::MutexLock lock(&mutex_);
        heartbeats_.push_back(beat);
        notices.swap(notices_);
      }
      for (const v1::Notice& notice : notices) stream->Write(notice);
    }
    absl::MutexLock lock(&mutex_);
    context->IsCancelled() ? ++cancelled_ : ++left_;
    return grpc::Status::OK;
  }

  // The next joins are answered so.
  void Refuse(std::vector<absl::Status> refusals) {
    absl::MutexLock lock(&mutex_);
    refusals_ = std::move(refusals);
  }
  // To be sent with the next heartbeat.
  void Notify(uint64_t epoch, bool leave) {
    absl::MutexLock lock(&mutex_);
    notices_.emplace_back().set_epoch(epoch);
    notices_.back().set_leave(leave);
  }
  std::vector<std::string> joins() {
    absl::MutexLock lock(&mutex_);
    return joins_;
  }
  std::pair<int, int> left_and_cancelled() {
    absl::MutexLock lock(&mutex_);
    return {left_, cancelled_};
  }
  // The `count` newest heartbeats of a member, once there are so many.
  std::vector<v1::Heartbeat> AwaitHeartbeats(const std::string& member_id, size_t count) {
    std::vector<v1::Heartbeat> found;
    const auto there = [&] {
      mutex_.AssertHeld();
      found.clear();
      for (const v1::Heartbeat& beat : heartbeats_) {
        if (beat.member_id() == member_id) found.push_back(beat);
      }
      return found.size() >= count;
    };
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience)) << "no heartbeats of " << member_id;
    return found;
  }
  bool AwaitJoins(size_t count) {
    const auto there = [&] {
      mutex_.AssertHeld();
      return joins_.size() >= count;
    };
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }

 private:
  absl::Mutex mutex_;
  int ids_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> joins_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Status> refusals_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::Heartbeat> heartbeats_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::Notice> notices_ ABSL_GUARDED_BY(mutex_);
  int left_ ABSL_GUARDED_BY(mutex_) = 0;       // streams that the member ended
  int cancelled_ ABSL_GUARDED_BY(mutex_) = 0;  // streams that broke
};

class MembershipTest : public ::testing::Test {
 protected:
  Membership::Options Options() const {
    Membership::Options options;
    options.coordinator = server_.address();
    options.join.set_role(v1::WORKER);
    options.join.set_name("w1");
    return options;
  }
  std::unique_ptr<Membership> Joined(Membership::Options options) {
    auto membership = Membership::Join(std::move(options), nullptr);
    EXPECT_OK(membership);
    return membership.ok() ? *std::move(membership) : nullptr;
  }

  FakeCluster cluster_;
  RestartingServer server_{&cluster_};
};

TEST_F(MembershipTest, JoinsAndSendsHeartbeats) {
  Membership::Options options = Options();
  options.resident_bytes = [] { return uint64_t{12345}; };
  const auto membership = Joined(std::move(options));
  EXPECT_EQ(membership->member_id(), "member-1");
  EXPECT_OK(membership->status());
  EXPECT_THAT(cluster_.joins(), ElementsAre("w1"));
  EXPECT_EQ(cluster_.AwaitHeartbeats("member-1", 3).back().resident_bytes(), 12345u);
}

TEST_F(MembershipTest, WaitsForACoordinatorThatIsNotThereYet) {
  server_.Stop();
  std::unique_ptr<Membership> membership;
  std::thread joining([&] { membership = Joined(Options()); });
  server_.Start();
  joining.join();
  EXPECT_EQ(membership->member_id(), "member-1");
}

TEST_F(MembershipTest, AStopEndsTheWaitForACoordinator) {
  server_.Stop();
  absl::Notification stop;
  absl::Status status;
  std::thread joining([&] { status = Membership::Join(Options(), &stop).status(); });
  stop.Notify();
  joining.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(status.message()), HasSubstr(server_.address()));
}

TEST_F(MembershipTest, ARefusalIsFinal) {
  for (const absl::Status& refusal :
       {absl::PermissionDeniedError("another build"), absl::InvalidArgumentError("no name")}) {
    cluster_.Refuse({refusal});
    const size_t before = cluster_.joins().size();
    const absl::Status status = Membership::Join(Options(), nullptr).status();
    EXPECT_EQ(status.code(), refusal.code());
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(refusal.message())));
    EXPECT_THAT(std::string(status.message()), HasSubstr(server_.address()));
    EXPECT_EQ(cluster_.joins().size(), before + 1);
  }
}

TEST_F(MembershipTest, OtherErrorsOfJoiningAreTriedAgain) {
  // A name is taken until the member that had it is found dead.
  cluster_.Refuse({absl::AlreadyExistsError("w1 is there"), absl::InternalError("?"), absl::UnavailableError("later")});
  EXPECT_EQ(Joined(Options())->member_id(), "member-1");
  EXPECT_EQ(cluster_.joins().size(), 4u);
}

TEST_F(MembershipTest, JoinsAgainUnderANewIdAfterARestart) {
  const auto membership = Joined(Options());
  cluster_.AwaitHeartbeats("member-1", 1);
  server_.Stop();
  server_.Start();
  EXPECT_EQ(membership->AwaitNewId("member-1", kPatience), "member-2");
  cluster_.AwaitHeartbeats("member-2", 2);
  EXPECT_OK(membership->status());
  EXPECT_EQ(membership->AwaitNewId("member-2", absl::Milliseconds(1)), "member-2");
}

TEST_F(MembershipTest, ARefusalWhenJoiningAgainEndsMembership) {
  const auto membership = Joined(Options());
  cluster_.AwaitHeartbeats("member-1", 1);
  cluster_.Refuse({absl::PermissionDeniedError("another build")});
  server_.Stop();
  server_.Start();
  // Does not wait for an id that will never come.
  EXPECT_EQ(membership->AwaitNewId("member-1", absl::InfiniteDuration()), "");
  EXPECT_EQ(membership->status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(membership->member_id(), "");
}

TEST_F(MembershipTest, NoticesReachTheirCallbacks) {
  Membership::Options options = Options();
  absl::Notification left;
  std::vector<uint64_t> epochs;  // written before `left`
  options.on_epoch = [&epochs](uint64_t epoch) { epochs.push_back(epoch); };
  options.on_leave = [&left] { left.Notify(); };
  cluster_.Notify(3, false);
  cluster_.Notify(4, false);
  cluster_.Notify(0, true);
  const auto membership = Joined(std::move(options));
  ASSERT_TRUE(left.WaitForNotificationWithTimeout(kPatience));
  EXPECT_THAT(epochs, ElementsAre(3, 4));
}

TEST_F(MembershipTest, LeavingEndsTheStream) {
  auto membership = Joined(Options());
  cluster_.AwaitHeartbeats("member-1", 1);
  membership.reset();
  EXPECT_EQ(cluster_.left_and_cancelled(), std::pair(1, 0));
}

TEST_F(MembershipTest, LeavesWhileJoiningAgain) {
  auto membership = Joined(Options());
  cluster_.AwaitHeartbeats("member-1", 1);
  cluster_.Refuse(std::vector<absl::Status>(1000, absl::UnavailableError("later")));
  server_.Stop();
  server_.Start();
  ASSERT_TRUE(cluster_.AwaitJoins(2));
  membership.reset();
}

}  // namespace
}  // namespace millrace::client
