// Blocks through memory that shard and worker share.
#include "ps/attachments.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "blocks/shared_plane.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"

namespace millrace::ps {
namespace {

using ::testing::HasSubstr;

class AttachmentsTest : public ::testing::Test {
 protected:
  AttachmentsTest() { course_.LoadInitial(); }

  // Until the shard's metrics have that line.
  void AwaitMetric(const std::string& line) {
    const auto there = [&] { return absl::StrContains(course_.shard(0).metrics().Text(), line); };
    const absl::Time until = absl::Now() + absl::Seconds(10);
    while (!there() && absl::Now() < until) std::this_thread::yield();
    EXPECT_TRUE(there()) << line;
  }
  void AwaitCount(int count) { AwaitMetric(absl::StrCat("millrace_shard_attachments ", count)); }
  // A block's values that count, coded for the step after version 0.
  absl::Status Add(client::GradientPush* push, uint32_t unit, uint32_t block) {
    std::string values;
    EXPECT_TRUE(blocks::Encode(course_.Gradient(0, unit, block), {}, &values).ok());
    return push->Add(block, {}, std::move(values), 0);
  }

  Course course_{LittleTable(), OptimizerOf("adamw"), 1, 1, /*share_memory=*/true};
};

TEST_F(AttachmentsTest, LastsAsLongAsTheWorkersGroup) {
  AwaitCount(0);
  course_.Step(0);
  AwaitCount(1);
  course_.Step(1);
  AwaitCount(1);
  course_.Configure(2);  // another group; the former one ends
  AwaitCount(0);
}

TEST_F(AttachmentsTest, AWorkerWithOtherMemoryIsTold) {
  for (const std::string& memory : {std::string("1/1"), std::string("../../etc/passwd"), std::string()}) {
    grpc::ClientContext context;
    const auto stream = course_.shard(0).stub().Attach(&context);
    v1::AttachRequest request;
    request.set_memory(memory);
    ASSERT_TRUE(stream->Write(request));
    v1::AttachReply reply;
    ASSERT_TRUE(stream->Read(&reply));
    EXPECT_EQ(reply.attachment(), "") << memory;
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
  }
  AwaitCount(0);
}

TEST_F(AttachmentsTest, TheShardProvesThatItSeesTheMemory) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_TRUE(plane.ok()) << plane.status();
  grpc::ClientContext context;
  const auto stream = course_.shard(0).stub().Attach(&context);
  v1::AttachRequest request;
  request.set_memory((*plane)->name());
  ASSERT_TRUE(stream->Write(request));
  v1::AttachReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_NE(reply.attachment(), "");
  EXPECT_EQ(reply.workers_digest(), (*plane)->WorkersDigest());
  EXPECT_EQ(reply.shards_digest(), (*plane)->ShardsDigest());
  EXPECT_NE(reply.shards_digest(), reply.workers_digest());
  AwaitCount(1);
  stream->WritesDone();
  stream->Finish();
  AwaitCount(0);
}

TEST_F(AttachmentsTest, CallsThatNameNoneAreRefused) {
  {
    grpc::ClientContext context;
    v1::PullRequest request;
    request.set_epoch(1);
    request.set_attachment("none");
    const auto stream = course_.shard(0).stub().Pull(&context, request);
    v1::PullReply reply;
    EXPECT_FALSE(stream->Read(&reply));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
  grpc::ClientContext context;
  v1::PushReply reply;
  const auto stream = course_.shard(0).stub().Push(&context, &reply);
  v1::PushRequest request;
  request.set_attachment("none");
  stream->Write(request);
  stream->WritesDone();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(AttachmentsTest, AnErrorEndsAPushOfMoreThanTheMemoryHolds) {
  const std::unique_ptr<client::GradientPush> push = course_.group().Push(/*version=*/7, 0);
  absl::Status status;
  for (int i = 0; i < 20 && status.ok(); ++i) status = Add(push.get(), 0, 0);
  if (status.ok()) status = push->Finish();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 7 lies ahead"));
  course_.Step(0);  // on a new attachment
  AwaitCount(1);
}

TEST_F(AttachmentsTest, WhatAnAbandonedPushLeftDoesNoHarm) {
  Course plain(LittleTable(), OptimizerOf("adamw"), 1);
  plain.LoadInitial();
  plain.Step(0);
  for (int i = 0; i < 5; ++i) {
    const std::unique_ptr<client::GradientPush> push = course_.group().Push(0, 0);
    for (const uint32_t block : {0u, 1u}) ASSERT_TRUE(Add(push.get(), 0, block).ok());
  }
  course_.Step(0);
  EXPECT_TRUE(course_.ReadAt(1) == plain.ReadAt(1));
}

TEST_F(AttachmentsTest, AShardThatShutsDownEndsPullsAtOnce) {
  course_.Step(0);
  std::thread closes([&] {
    AwaitMetric("millrace_shard_waiting_pulls 1");
    course_.shard(0).service().Close();
  });
  const absl::Time begun = absl::Now();
  const absl::Status pulled =
      course_.group().Pull(5, [](uint32_t, absl::string_view, const blocks::Coding&) { return absl::OkStatus(); });
  EXPECT_TRUE(absl::IsUnavailable(pulled)) << pulled;
  EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
  closes.join();
}

}  // namespace
}  // namespace millrace::ps
