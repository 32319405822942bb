#include "common/health.h"

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(10);

TEST(Health, LivesFromTheStartAndIsReadyWhenSaid) {
  const absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start("127.0.0.1:0");
  ASSERT_OK(health);
  const std::string address = (*health)->address();
  EXPECT_OK(CheckHealth(address, kLive, kPatience));
  const absl::Status early = CheckHealth(address, kReady, kPatience);
  EXPECT_TRUE(absl::IsUnavailable(early)) << early;
  EXPECT_THAT(std::string(early.message()), AllOf(HasSubstr(address), HasSubstr("ready"), HasSubstr("not serving")));
  (*health)->SetReady(true);
  EXPECT_OK(CheckHealth(address, kReady, kPatience));
  (*health)->SetReady(false);
  EXPECT_TRUE(absl::IsUnavailable(CheckHealth(address, kReady, kPatience)));
  EXPECT_OK(CheckHealth(address, kLive, kPatience));
}

TEST(Health, AsksAnyServerOfTheProtocol) {
  // gRPC's own service, as the roles' servers have it: it says SERVING for the server as a whole.
  GrpcServerOptions serving;
  serving.listen = "127.0.0.1:0";
  const absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(serving);
  ASSERT_OK(server);
  EXPECT_OK(CheckHealth((*server)->address(), "", kPatience));
  EXPECT_TRUE(absl::IsNotFound(CheckHealth((*server)->address(), "ready", kPatience)));
}

TEST(Health, NobodyThereIsNotWell) {
  std::string address;
  {
    const absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start("127.0.0.1:0");
    ASSERT_OK(health);
    address = (*health)->address();
  }
  const absl::Status gone = CheckHealth(address, kLive, kPatience);
  EXPECT_TRUE(absl::IsUnavailable(gone)) << gone;
  EXPECT_THAT(std::string(gone.message()), HasSubstr(address));
}

TEST(Health, AddressesAreChecked) {
  const absl::StatusOr<std::unique_ptr<HealthServer>> nowhere = HealthServer::Start("");
  ASSERT_OK(nowhere);
  EXPECT_EQ((*nowhere)->address(), "");
  (*nowhere)->SetReady(true);
  EXPECT_TRUE(absl::IsInvalidArgument(HealthServer::Start("7499").status()));
  const absl::StatusOr<std::unique_ptr<HealthServer>> first = HealthServer::Start("127.0.0.1:0");
  ASSERT_OK(first);
  const absl::Status taken = HealthServer::Start((*first)->address()).status();
  EXPECT_TRUE(absl::IsUnavailable(taken)) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr((*first)->address()));
}

}  // namespace
}  // namespace millrace
