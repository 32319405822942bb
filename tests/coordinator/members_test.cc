#include "coordinator/members.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Time kStart = absl::UnixEpoch();

v1::JoinRequest Request(v1::MemberRole role, const std::string& name) {
  v1::JoinRequest request;
  request.set_role(role);
  request.set_name(name);
  if (role == v1::SHARD) request.set_address("127.0.0.1:7");
  request.set_conformance_digest(role == v1::SHARD ? "s" : "w");
  request.set_build("0.1 gcc 12");
  request.set_processor("Zen 5, avx512");
  return request;
}

class MembersTest : public ::testing::Test {
 protected:
  Members members_{
      {.worker_conformance_digest = "w",
       .shard_conformance_digest = "s",
       .lease = absl::Seconds(10),
       .limit = 3,
       .on_join = [this](const Member& member) { joined_.push_back(member.name); },
       .on_loss = [this](const Member& member,
                         absl::string_view why) { lost_.push_back(member.name + ": " + std::string(why)); },
       .on_leaving = [this](const Member& member) { leaving_.push_back(member.name); }}};
  std::vector<std::string> joined_, lost_, leaving_;
};

TEST_F(MembersTest, AnotherConformanceDigestIsRefusedNamingMemberBuildAndProcessor) {
  v1::JoinRequest request = Request(v1::WORKER, "w-1");
  request.set_conformance_digest("other");
  const auto joined = members_.Join(request, kStart);
  EXPECT_EQ(joined.status().code(), absl::StatusCode::kPermissionDenied);
  for (const char* part : {"w-1", "0.1 gcc 12", "Zen 5, avx512", "other"}) {
    EXPECT_THAT(joined.status().message(), HasSubstr(part));
  }
  // A shard's digest is another than a worker's.
  request = Request(v1::SHARD, "s-1");
  request.set_conformance_digest("w");
  EXPECT_EQ(members_.Join(request, kStart).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(joined_.empty());
}

TEST_F(MembersTest, AMembersIdCannotBeGuessedAndIsOfUseToItAlone) {
  const std::string id = members_.Join(Request(v1::WORKER, "w-1"), kStart, "worker 'a'")->member_id();
  EXPECT_THAT(id, ::testing::MatchesRegex("worker-1-[0-9a-f]{16}"));
  EXPECT_OK(members_.Hear(id, 0, kStart, "worker 'a'"));
  for (const char* identity : {"", "worker 'b'", "shard 'a'"}) {
    const absl::Status status = members_.Hear(id, 0, kStart, identity);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("member 'w-1'"));
  }
}

TEST_F(MembersTest, SilenceForLongerThanTheLeaseRemovesAMember) {
  const std::string quiet = members_.Join(Request(v1::WORKER, "quiet"), kStart)->member_id();
  const std::string lively = members_.Join(Request(v1::SHARD, "lively"), kStart)->member_id();
  EXPECT_OK(members_.Hear(lively, 5, kStart + absl::Seconds(8)));
  EXPECT_THAT(members_.Expire(kStart + absl::Seconds(10)), ElementsAre());
  EXPECT_THAT(members_.Expire(kStart + absl::Seconds(11)), ElementsAre(quiet));
  EXPECT_THAT(lost_, ElementsAre("quiet: silent for 10s"));
  EXPECT_EQ(members_.Hear(quiet, 0, kStart).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(members_.shard_losses(), 0u);
  EXPECT_EQ(members_.Living(v1::SHARD).front().resident_bytes, 5u);
  members_.Remove(lively, "its stream ended");
  members_.Remove(lively, "again");
  EXPECT_EQ(members_.shard_losses(), 1u);
  EXPECT_EQ(lost_.size(), 2u);
}

TEST_F(MembersTest, AShardThatNoJobHoldsMayGoAtOnce) {
  const std::string spare = members_.Join(Request(v1::SHARD, "spare"), kStart)->member_id();
  const std::string worker = members_.Join(Request(v1::WORKER, "w"), kStart)->member_id();
  int released = 0;
  members_.Leave(spare, [&] { ++released; });
  members_.Leave(worker, [&] { ++released; });
  members_.Leave("nobody", [&] { ++released; });
  EXPECT_EQ(released, 3);
  // Nothing is to be done for it, and no job takes it any more.
  EXPECT_EQ(members_.shard_departures(), 0u);
  EXPECT_TRUE(leaving_.empty());
  EXPECT_TRUE(members_.Living(v1::SHARD).empty());
  EXPECT_FALSE(members_.Hold({spare}));
  members_.Remove(spare, "its stream ended");
  EXPECT_EQ(members_.shard_losses(), 0u);
}

TEST_F(MembersTest, AShardThatAJobHoldsMayGoWhenTheJobLetsGo) {
  const std::string first = members_.Join(Request(v1::SHARD, "first"), kStart)->member_id();
  const std::string second = members_.Join(Request(v1::SHARD, "second"), kStart)->member_id();
  ASSERT_TRUE(members_.Hold({first, second}));
  int released = 0;
  members_.Leave(first, [&] { ++released; });
  EXPECT_EQ(released, 0);
  EXPECT_EQ(members_.shard_departures(), 1u);
  EXPECT_THAT(leaving_, ElementsAre("first"));
  EXPECT_EQ(members_.Living(v1::SHARD).size(), 1u);
  EXPECT_EQ(members_.shard_losses(), 0u);
  members_.Release();
  EXPECT_EQ(released, 1);
  members_.Remove(first, "its stream ended");
  EXPECT_EQ(members_.shard_losses(), 0u);
  EXPECT_EQ(released, 1);
}

TEST_F(MembersTest, AShardThatDiesBeforeItMayGoIsLost) {
  const std::string shard = members_.Join(Request(v1::SHARD, "s"), kStart)->member_id();
  ASSERT_TRUE(members_.Hold({shard}));
  int released = 0;
  members_.Leave(shard, [&] { ++released; });
  members_.Remove(shard, "its stream ended");
  EXPECT_EQ(members_.shard_losses(), 1u);
  // The call that waited is not left hanging.
  EXPECT_EQ(released, 1);
}

TEST_F(MembersTest, ANameIsFreeAgainWhenItsMemberHasGone) {
  const std::string id = members_.Join(Request(v1::WORKER, "w"), kStart)->member_id();
  EXPECT_EQ(members_.Join(Request(v1::WORKER, "w"), kStart).status().code(), absl::StatusCode::kAlreadyExists);
  members_.Remove(id, "left");
  const auto again = members_.Join(Request(v1::WORKER, "w"), kStart);
  ASSERT_OK(again);
  EXPECT_NE(again->member_id(), id);
}

TEST_F(MembersTest, NonsenseIsRefused) {
  const auto code = [&](const v1::JoinRequest& request) { return members_.Join(request, kStart).status().code(); };
  v1::JoinRequest request = Request(v1::WORKER, "w");
  request.set_role(v1::MEMBER_ROLE_UNSPECIFIED);
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Request(v1::WORKER, "")), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Request(v1::WORKER, "line\nbreak")), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Request(v1::WORKER, std::string(100000, 'x'))), absl::StatusCode::kInvalidArgument);
  request = Request(v1::SHARD, "s");
  request.clear_address();
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  for (const char* name : {"1", "2", "3"}) EXPECT_OK(members_.Join(Request(v1::WORKER, name), kStart));
  EXPECT_EQ(code(Request(v1::WORKER, "4")), absl::StatusCode::kResourceExhausted);
}

TEST_F(MembersTest, WaitingEndsWhenEverybodyIsThere) {
  std::thread waits([&] { EXPECT_TRUE(members_.Await(1, 1, absl::InfiniteFuture(), [] { return false; })); });
  ASSERT_OK(members_.Join(Request(v1::WORKER, "w"), kStart));
  ASSERT_OK(members_.Join(Request(v1::SHARD, "s"), kStart));
  waits.join();
  EXPECT_FALSE(members_.Await(2, 1, absl::InfinitePast(), [] { return false; }));
  EXPECT_FALSE(members_.Await(1, 1, absl::InfiniteFuture(), [] { return true; }));
}

}  // namespace
}  // namespace millrace::coordinator
