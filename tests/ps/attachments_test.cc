// Blocks through memory that shard and worker share.
#include "ps/attachments.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "blocks/shared_plane.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"
#include "testing/status.h"

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
    EXPECT_OK(blocks::Encode(course_.Gradient(0, unit, block), {}, &values));
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

// An attachment made by hand.
struct Attached {
  Attached(v1::ParameterServer::Stub* stub, const std::string& memory, const std::string& digest)
      : stream(stub->Attach(&context)) {
    v1::AttachRequest request;
    request.set_memory(memory);
    request.set_workers_digest(digest);
    EXPECT_TRUE(stream->Write(request));
    EXPECT_TRUE(stream->Read(&reply));
  }
  grpc::Status End() {
    stream->WritesDone();
    return stream->Finish();
  }

  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::AttachRequest, v1::AttachReply>> stream;
  v1::AttachReply reply;
};

TEST_F(AttachmentsTest, AWorkerWithOtherMemoryIsTold) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  const std::string before = (*plane)->ShardsDigest();
  // Memory that is not there; and some that is there, but that whoever asks has not read.
  for (const std::string& memory :
       {std::string("1/1"), std::string("../../etc/passwd"), std::string(), (*plane)->name()}) {
    Attached attached(&course_.shard(0).stub(), memory, std::string(64, '0'));
    EXPECT_EQ(attached.reply.attachment(), "") << memory;
    EXPECT_EQ(attached.reply.shards_digest(), "") << memory;
    EXPECT_OK(attached.End());
  }
  EXPECT_EQ((*plane)->ShardsDigest(), before);
  AwaitCount(0);
}

TEST_F(AttachmentsTest, TheShardProvesThatItSeesTheMemory) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  const std::string before = (*plane)->ShardsDigest();
  Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
  EXPECT_NE(attached.reply.attachment(), "");
  EXPECT_EQ(attached.reply.shards_digest(), (*plane)->ShardsDigest());
  EXPECT_NE(attached.reply.shards_digest(), before);
  AwaitCount(1);
  EXPECT_OK(attached.End());
  AwaitCount(0);
}

TEST_F(AttachmentsTest, ThereMayBeOnlySoMany) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  std::vector<std::unique_ptr<Attached>> all;
  for (size_t i = 0; i <= Attachments::kMost; ++i) {
    all.push_back(std::make_unique<Attached>(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest()));
    EXPECT_EQ(all.back()->reply.attachment().empty(), i == Attachments::kMost) << i;
  }
  course_.Step(0);  // by messages
  for (const auto& attached : all) attached->End();
  AwaitCount(0);
}

// As when it is killed: its connection ends in the middle of a pull for which the memory is too small, and of a push.
TEST_F(AttachmentsTest, AWorkerThatGoesTakesNothingWithIt) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
  grpc::ClientContext pulling, pushing;
  v1::PullRequest pull;
  pull.set_epoch(1);
  pull.set_attachment(attached.reply.attachment());
  const auto puller = course_.shard(0).stub().Pull(&pulling, pull);
  v1::PushReply pushed;
  const auto pusher = course_.shard(0).stub().Push(&pushing, &pushed);
  v1::PushRequest push;
  push.set_attachment(attached.reply.attachment());
  ASSERT_TRUE(pusher->Write(push));
  const auto always = [] { return true; };
  ASSERT_OK((*plane)->pull()->Next(always));  // and it waits for room
  std::string values;
  const auto saturated = blocks::Encode(course_.Gradient(0, 0, 0), {}, &values);
  ASSERT_OK(saturated);
  const auto room = (*plane)->push()->Reserve(values.size(), always);
  ASSERT_OK(room);
  std::memcpy(*room, values.data(), values.size());
  v1::PushRequest about;
  about.set_epoch(1);
  *about.mutable_coding() = blocks::CodingToProto({});
  (*plane)->push()->Commit(about.SerializeAsString());
  ASSERT_OK((*plane)->push()->Reserve(SharedRing::kMostValues, always));  // nothing comes of it
  pulling.TryCancel();
  pushing.TryCancel();
  attached.context.TryCancel();
  v1::PullReply none;
  EXPECT_FALSE(puller->Read(&none));
  EXPECT_FALSE(puller->Finish().ok());
  EXPECT_FALSE(pusher->Finish().ok());
  EXPECT_FALSE(attached.stream->Finish().ok());
  AwaitCount(0);
  // What it had pushed counts, once.
  course_.Step(0);
  Course plain(LittleTable(), OptimizerOf("adamw"), 1);
  plain.LoadInitial();
  plain.Step(0);
  EXPECT_TRUE(course_.ReadAt(1) == plain.ReadAt(1));
}

// Each call has the memory to itself; another goes by messages.
TEST_F(AttachmentsTest, PullsAtOnceBringTheSame) {
  course_.Step(0);
  const Held held = course_.ReadAt(1);
  std::vector<std::thread> pullers;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i) {
    pullers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        const absl::Status pulled =
            course_.group().Pull(1, [&](uint32_t block, absl::string_view weights, const blocks::Coding&) {
              right += weights == held.weights[block];
              return absl::OkStatus();
            });
        EXPECT_OK(pulled);
      }
    });
  }
  for (std::thread& puller : pullers) puller.join();
  EXPECT_EQ(right, 4 * 20 * static_cast<int>(course_.blocks().blocks().size()));
  AwaitCount(1);
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
    for (const uint32_t block : {0u, 1u}) ASSERT_OK(Add(push.get(), 0, block));
  }
  course_.Step(0);
  EXPECT_TRUE(course_.ReadAt(1) == plain.ReadAt(1));
}

// Answers an attaching worker with that digest, and keeps the attachment until the worker ends it.
grpc::Status HoldAttachment(const std::string& shards_digest,
                            grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream) {
  v1::AttachReply reply;
  reply.set_attachment("any");
  reply.set_shards_digest(shards_digest);
  stream->Write(reply);
  v1::AttachRequest request;
  while (stream->Read(&request)) {
  }
  return grpc::Status::OK;
}

// Served in place of a shard: says that it sees the memory of another machine, and takes all that comes by messages.
class Boastful final : public v1::ParameterServer::Service {
 public:
  grpc::Status Attach(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream) override {
    v1::AttachRequest request;
    ++attaches;
    if (!stream->Read(&request)) return grpc::Status::OK;
    return HoldAttachment(request.workers_digest(), stream);
  }
  grpc::Status Push(grpc::ServerContext*, grpc::ServerReader<v1::PushRequest>* stream, v1::PushReply* reply) override {
    v1::PushRequest request;
    uint64_t added = 0;
    while (stream->Read(&request)) added += !request.values().empty();
    reply->set_blocks_added(added);
    return grpc::Status::OK;
  }
  std::atomic<int> attaches = 0;
};

TEST_F(AttachmentsTest, AShardThatProvesNothingGetsMessages) {
  Boastful service;
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&service};
  const auto server = GrpcServer::Start(options);
  ASSERT_OK(server);
  client::ShardGroup group(1, {(*server)->address()}, /*share_memory=*/true);
  group.Place(&course_.blocks(), OptimizerOf("adamw"));
  for (int round = 0; round < 3; ++round) {
    const std::unique_ptr<client::GradientPush> push = group.Push(0, 0);
    ASSERT_OK(Add(push.get(), 0, 0));
    EXPECT_OK(push->Finish());
  }
  EXPECT_EQ(service.attaches, 1);
}

// Served in place of a shard: has its own say about the calls through memory.
class Stubborn final : public v1::ParameterServer::Service {
 public:
  grpc::Status Attach(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::AttachReply, v1::AttachRequest>* stream) override {
    v1::AttachRequest request;
    if (!stream->Read(&request)) return grpc::Status::OK;
    const auto plane = blocks::SharedPlane::Open(request.memory(), request.workers_digest());
    if (!plane.ok()) return ToGrpc(plane.status());
    return HoldAttachment((*plane)->ShardsDigest(), stream);
  }
  grpc::Status Push(grpc::ServerContext*, grpc::ServerReader<v1::PushRequest>*, v1::PushReply*) override {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many calls"};
  }
  grpc::Status Pull(grpc::ServerContext*, const v1::PullRequest*, grpc::ServerWriter<v1::PullReply>*) override {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many calls"};
  }
};

// The memory is there still, but nobody writes or reads it.
TEST_F(AttachmentsTest, ACallEndsWithItsStatusWhereverTheBlocksGo) {
  Stubborn service;
  GrpcServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&service};
  const auto server = GrpcServer::Start(options);
  ASSERT_OK(server);
  client::ShardGroup group(1, {(*server)->address()}, /*share_memory=*/true);
  group.Place(&course_.blocks(), OptimizerOf("adamw"));
  const absl::Status pulled =
      group.Pull(0, [](uint32_t, absl::string_view, const blocks::Coding&) { return absl::OkStatus(); });
  EXPECT_TRUE(absl::IsResourceExhausted(pulled)) << pulled;
  for (int round = 0; round < 2; ++round) {
    const std::unique_ptr<client::GradientPush> push = group.Push(0, 0);
    absl::Status status;
    // Add says so, at last: much more than may wait.
    for (int i = 0; i < 1000 && status.ok(); ++i) status = Add(push.get(), 0, 0);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(absl::IsResourceExhausted(push->Finish()));
  }
}

// One shard's error ends the other's calls. It does not end what comes later.
TEST_F(AttachmentsTest, AnErrorOfOneShardLeavesTheOthersAttached) {
  Course two(LittleTable(), OptimizerOf("adamw"), 2, 1, /*share_memory=*/true);
  two.LoadInitial();
  two.Step(0);
  const auto first = [&](uint32_t refused) {
    return two.group().Pull(1, [refused](uint32_t block, absl::string_view, const blocks::Coding&) {
      return block == refused ? absl::InternalError("not this one") : absl::OkStatus();
    });
  };
  for (uint32_t block = 0; block < two.blocks().blocks().size(); ++block) {
    EXPECT_TRUE(absl::IsInternal(first(block)));
    const absl::Status again = first(9999);
    EXPECT_OK(again) << again << " after block " << block;
  }
  two.Step(1);
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
