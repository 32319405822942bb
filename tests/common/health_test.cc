#include "common/health.h"

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/grpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(10);

TEST(Health, LivesFromTheStartAndIsReadyWhenSaid) {
  const absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start("127.0.0.1:0");
  ASSERT_TRUE(health.ok()) << health.status();
  const std::string address = (*health)->address();
  EXPECT_TRUE(CheckHealth(address, kLive, kPatience).ok());
  const absl::Status early = CheckHealth(address, kReady, kPatience);
  EXPECT_TRUE(absl::IsUnavailable(early)) << early;
  EXPECT_THAT(std::string(early.message()), AllOf(HasSubstr(address), HasSubstr("ready"), HasSubstr("not serving")));
  (*health)->SetReady(true);
  EXPECT_TRUE(CheckHealth(address, kReady, kPatience).ok());
  (*health)->SetReady(false);
  EXPECT_TRUE(absl::IsUnavailable(CheckHealth(address, kReady, kPatience)));
  EXPECT_TRUE(CheckHealth(address, kLive, kPatience).ok());
}

TEST(Health, AsksAnyServerOfTheProtocol) {
  // gRPC's own service, as the roles' servers have it: it says SERVING for the server as a whole.
  GrpcServerOptions serving;
  serving.listen = "127.0.0.1:0";
  const absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(serving);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(CheckHealth((*server)->address(), "", kPatience).ok());
  EXPECT_TRUE(absl::IsNotFound(CheckHealth((*server)->address(), "ready", kPatience)));
}

TEST(Health, NobodyThereIsNotWell) {
  std::string address;
  {
    const absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start("127.0.0.1:0");
    ASSERT_TRUE(health.ok()) << health.status();
    address = (*health)->address();
  }
  const absl::Status gone = CheckHealth(address, kLive, kPatience);
  EXPECT_TRUE(absl::IsUnavailable(gone)) << gone;
  EXPECT_THAT(std::string(gone.message()), HasSubstr(address));
}

TEST(Health, AddressesAreChecked) {
  const absl::StatusOr<std::unique_ptr<HealthServer>> nowhere = HealthServer::Start("");
  ASSERT_TRUE(nowhere.ok()) << nowhere.status();
  EXPECT_EQ((*nowhere)->address(), "");
  (*nowhere)->SetReady(true);
  EXPECT_TRUE(absl::IsInvalidArgument(HealthServer::Start("7499").status()));
  const absl::StatusOr<std::unique_ptr<HealthServer>> first = HealthServer::Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status taken = HealthServer::Start((*first)->address()).status();
  EXPECT_TRUE(absl::IsUnavailable(taken)) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr((*first)->address()));
}

}  // namespace
}  // namespace millrace
