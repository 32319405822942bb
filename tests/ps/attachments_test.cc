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
  Attached(v1::ParameterServer::Stub* stub, const std::string& memory, const std::string& digest) {
    v1::AttachRequest request;
    request.set_memory(memory);
    request.set_workers_digest(digest);
    stream = stub->Attach(&context, request);
    EXPECT_TRUE(stream->Read(&reply));
  }
  bool shared() const { return !reply.shards_digest().empty(); }
  // As when the worker is killed.
  grpc::Status End() {
    context.TryCancel();
    return Await();
  }
  grpc::Status Await() {
    EXPECT_FALSE(stream->Read(&reply));
    return stream->Finish();
  }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::AttachReply>> stream;
  v1::AttachReply reply;
};

bool Always() { return true; }

// Writes a frame to the shard.
void Say(blocks::SharedPlane* plane, absl::string_view about, absl::string_view values) {
  const auto room = plane->to_shard()->Reserve(values.size(), &Always);
  ASSERT_OK(room);
  std::memcpy(*room, values.data(), values.size());
  plane->to_shard()->Commit(about);
}

TEST_F(AttachmentsTest, AWorkerWithOtherMemoryIsTold) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  const std::string before = (*plane)->ShardsDigest();
  // Memory that is not there; and some that is there, but that whoever asks has not read.
  for (const std::string& memory :
       {std::string("1/1"), std::string("../../etc/passwd"), std::string(), (*plane)->name()}) {
    Attached attached(&course_.shard(0).stub(), memory, std::string(64, '0'));
    EXPECT_FALSE(attached.shared()) << memory;
    EXPECT_OK(attached.Await());
  }
  EXPECT_EQ((*plane)->ShardsDigest(), before);
  AwaitCount(0);
}

TEST_F(AttachmentsTest, TheShardProvesThatItSeesTheMemory) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  const std::string before = (*plane)->ShardsDigest();
  Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
  EXPECT_EQ(attached.reply.shards_digest(), (*plane)->ShardsDigest());
  EXPECT_NE(attached.reply.shards_digest(), before);
  AwaitCount(1);
  EXPECT_EQ(attached.End().error_code(), grpc::StatusCode::CANCELLED);
  AwaitCount(0);
}

TEST_F(AttachmentsTest, ThereMayBeOnlySoMany) {
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  std::vector<std::unique_ptr<Attached>> all;
  for (size_t i = 0; i <= Attachments::kMost; ++i) {
    all.push_back(std::make_unique<Attached>(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest()));
    EXPECT_EQ(all.back()->shared(), i < Attachments::kMost) << i;
  }
  course_.Step(0);  // by messages
  for (const auto& attached : all) attached->End();
  AwaitCount(0);
}

// In the middle of a pull for which the memory is too small, and of a push.
TEST_F(AttachmentsTest, AWorkerThatGoesTakesNothingWithIt) {
  std::string values;
  ASSERT_OK(blocks::Encode(course_.Gradient(0, 0, 0), {}, &values));
  v1::SharedRequest pull, push;
  pull.mutable_pull()->set_epoch(1);
  push.mutable_push()->set_epoch(1);
  *push.mutable_push()->mutable_coding() = blocks::CodingToProto({});
  for (const bool pulls : {true, false}) {
    const auto plane = blocks::SharedPlane::Create();
    ASSERT_OK(plane);
    Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
    ASSERT_TRUE(attached.shared());
    Say(plane->get(), (pulls ? pull : push).SerializeAsString(), pulls ? "" : values);
    if (pulls) {
      ASSERT_OK((*plane)->to_worker()->Next(&Always));  // and it waits for room
    } else {
      ASSERT_OK((*plane)->to_shard()->Reserve(SharedRing::kMostValues, &Always));  // nothing comes of it
    }
    EXPECT_EQ(attached.End().error_code(), grpc::StatusCode::CANCELLED);
    AwaitCount(0);
  }
  // What it had pushed counts, once.
  course_.Step(0);
  Course plain(LittleTable(), OptimizerOf("adamw"), 1);
  plain.LoadInitial();
  plain.Step(0);
  EXPECT_TRUE(course_.ReadAt(1) == plain.ReadAt(1));
}

// A pull of a few blocks, in the order asked for; and one in which some are not there.
TEST_F(AttachmentsTest, ThoseBlocksComeThatAreAskedFor) {
  const Held held = course_.ReadAt(0);
  const auto plane = blocks::SharedPlane::Create();
  ASSERT_OK(plane);
  Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
  ASSERT_TRUE(attached.shared());
  v1::SharedRequest pull;
  pull.mutable_pull()->set_epoch(1);
  const auto ask = [&](std::vector<uint32_t> blocks) {
    Say(plane->get(), pull.SerializeAsString(),
        {reinterpret_cast<const char*>(blocks.data()), blocks.size() * sizeof(uint32_t)});
  };
  for (int round = 0; round < 2; ++round) {
    ask({2, 0});
    for (const uint32_t block : {2u, 0u}) {
      const auto frame = (*plane)->to_worker()->Next(&Always);
      ASSERT_OK(frame);
      v1::PullReply reply;
      ASSERT_TRUE(reply.ParseFromArray(frame->about.data(), static_cast<int>(frame->about.size())));
      EXPECT_EQ(reply.block(), block);
      EXPECT_TRUE(frame->values == held.weights[block]) << block;
      (*plane)->to_worker()->Release();
    }
  }
  ask({0, 12345});
  const grpc::Status ended = attached.Await();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(ended.error_message(), HasSubstr("there is no block 12345"));
  AwaitCount(0);
}

TEST_F(AttachmentsTest, NonsenseEndsTheAttachment) {
  const std::string empty;
  v1::SharedRequest push;
  push.mutable_push()->set_epoch(1);
  v1::SharedRequest elsewhere = push;
  elsewhere.mutable_push()->set_block(12345);
  v1::SharedRequest older;
  older.mutable_pull()->set_epoch(7);
  const std::pair<std::string, grpc::StatusCode> cases[] = {
      {"no message", grpc::StatusCode::INVALID_ARGUMENT},
      {empty, grpc::StatusCode::INVALID_ARGUMENT},
      {push.SerializeAsString(), grpc::StatusCode::INVALID_ARGUMENT},
      {elsewhere.SerializeAsString(), grpc::StatusCode::INVALID_ARGUMENT},
      {older.SerializeAsString(), grpc::StatusCode::FAILED_PRECONDITION},
  };
  for (const auto& [about, code] : cases) {
    const auto plane = blocks::SharedPlane::Create();
    ASSERT_OK(plane);
    Attached attached(&course_.shard(0).stub(), (*plane)->name(), (*plane)->WorkersDigest());
    ASSERT_TRUE(attached.shared());
    Say(plane->get(), about, "123");
    const grpc::Status ended = attached.Await();
    EXPECT_EQ(ended.error_code(), code) << about << ": " << ended.error_message();
  }
  AwaitCount(0);
  course_.Step(0);
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

// Served in place of a shard: says that it sees the memory of another machine, and takes all that comes by messages.
class Boastful final : public v1::ParameterServer::Service {
 public:
  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      grpc::ServerWriter<v1::AttachReply>* stream) override {
    ++attaches;
    v1::AttachReply reply;
    reply.set_shards_digest(request->workers_digest());
    stream->Write(reply);
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
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

// Served in place of a shard: attaches, and ends the call once something is asked for.
class Stubborn final : public v1::ParameterServer::Service {
 public:
  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      grpc::ServerWriter<v1::AttachReply>* stream) override {
    const auto plane = blocks::SharedPlane::Open(request->memory(), request->workers_digest());
    if (!plane.ok()) return ToGrpc(plane.status());
    v1::AttachReply reply;
    reply.set_shards_digest((*plane)->ShardsDigest());
    stream->Write(reply);
    if (!(*plane)->to_shard()->Next([context] { return !context->IsCancelled(); }).ok()) return grpc::Status::CANCELLED;
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
