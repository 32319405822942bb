#include "ps/parameter_service.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/shards.h"
#include "testing/status.h"

namespace millrace::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kEpoch = 7;
constexpr uint32_t kUnits = 2;

// One shard that holds a model of three blocks: a frozen vector, a matrix and a bias.
class ParameterServiceTest : public ::testing::Test {
 protected:
  static v1::ConfigureRequest Configuration() {
    v1::ConfigureRequest request;
    request.set_epoch(kEpoch);
    request.set_job_id("job");
    request.set_phase("phase");
    AddTensor("frozen", {3}, v1::Tensor::VECTOR, false, 0, request.mutable_table());
    AddTensor("matrix", {2, 4}, v1::Tensor::MATRIX, true, 0, request.mutable_table());
    AddTensor("bias", {2}, v1::Tensor::VECTOR, true, 1, request.mutable_table());
    *request.mutable_optimizer() = OptimizerOf("adamw");
    request.set_max_steps(10);
    request.set_shard_count(1);
    request.set_units_per_step(kUnits);
    return request;
  }
  static constexpr int64_t kSizes[] = {3, 8, 2};

  // ---- calls ----
  grpc::Status Configure(const v1::ConfigureRequest& request, v1::ConfigureReply* reply = nullptr) {
    grpc::ClientContext context;
    v1::ConfigureReply ignored;
    return shard_.stub().Configure(&context, request, reply == nullptr ? &ignored : reply);
  }
  grpc::Status Load(const std::vector<v1::LoadRequest>& requests, v1::LoadReply* reply = nullptr) {
    grpc::ClientContext context;
    v1::LoadReply ignored;
    const auto stream = shard_.stub().Load(&context, reply == nullptr ? &ignored : reply);
    for (const v1::LoadRequest& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    return stream->Finish();
  }
  grpc::Status Push(const std::vector<v1::PushRequest>& requests, v1::PushReply* reply = nullptr) {
    grpc::ClientContext context;
    v1::PushReply ignored;
    const auto stream = shard_.stub().Push(&context, reply == nullptr ? &ignored : reply);
    for (const v1::PushRequest& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    return stream->Finish();
  }
  grpc::Status Pull(const v1::PullRequest& request, std::vector<v1::PullReply>* replies) {
    grpc::ClientContext context;
    const auto stream = shard_.stub().Pull(&context, request);
    for (v1::PullReply reply; stream->Read(&reply);) replies->push_back(reply);
    return stream->Finish();
  }
  grpc::Status Norms(uint64_t version, v1::NormsReply* reply = nullptr, uint64_t epoch = kEpoch) {
    grpc::ClientContext context;
    v1::NormsRequest request;
    request.set_epoch(epoch);
    request.set_version(version);
    v1::NormsReply ignored;
    return shard_.stub().Norms(&context, request, reply == nullptr ? &ignored : reply);
  }
  grpc::Status Commit(uint64_t version, float clip_factor = 1, v1::CommitReply* reply = nullptr,
                      uint64_t epoch = kEpoch) {
    grpc::ClientContext context;
    v1::CommitRequest request;
    request.set_epoch(epoch);
    request.set_version(version);
    request.set_clip_factor(clip_factor);
    v1::CommitReply ignored;
    return shard_.stub().Commit(&context, request, reply == nullptr ? &ignored : reply);
  }
  grpc::Status Snapshot(uint64_t version, std::vector<v1::SnapshotReply>* replies, uint64_t epoch = kEpoch) {
    grpc::ClientContext context;
    v1::SnapshotRequest request;
    request.set_epoch(epoch);
    request.set_version(version);
    const auto stream = shard_.stub().Snapshot(&context, request);
    for (v1::SnapshotReply reply; stream->Read(&reply);) replies->push_back(reply);
    return stream->Finish();
  }
  v1::ShardStatus Status() {
    grpc::ClientContext context;
    v1::ShardStatus status;
    EXPECT_OK(shard_.stub().GetStatus(&context, {}, &status));
    return status;
  }

  // ---- requests ----
  static std::vector<float> Weights(uint32_t block) { return Numbers(1, block, kSizes[block], 1.0f); }
  static v1::LoadRequest LoadOf(uint32_t block, uint64_t version = 0) {
    v1::LoadRequest request;
    request.set_epoch(kEpoch);
    request.set_version(version);
    request.set_block(block);
    request.set_weights(Bytes(Weights(block)));
    Seal(&request);
    return request;
  }
  static void Seal(v1::LoadRequest* request) {
    const std::string bytes = absl::StrCat(request->weights(), request->state());
    request->set_crc32c(Crc32c(bytes.data(), bytes.size()));
  }
  // Of the coding at the start.
  static v1::PushRequest PushOf(uint32_t unit, uint32_t block, const std::vector<float>& gradient, uint64_t version = 0,
                                const blocks::Coding& coding = {}) {
    v1::PushRequest request;
    request.set_epoch(kEpoch);
    request.set_version(version);
    request.set_unit(unit);
    request.set_block(block);
    *request.mutable_coding() = blocks::CodingToProto(coding);
    std::string values;
    request.set_saturated(*blocks::Encode(gradient, coding, &values));
    request.set_values(values);
    Seal(&request);
    return request;
  }
  static void Seal(v1::PushRequest* request) {
    request->set_crc32c(Crc32c(request->values().data(), request->values().size()));
  }
  static std::vector<float> Gradient(uint32_t unit, uint32_t block) {
    return Numbers(10 + unit, block, kSizes[block], 0.1f);
  }
  static v1::PullRequest PullOf(uint64_t version, const std::vector<uint32_t>& blocks = {}, uint64_t epoch = kEpoch) {
    v1::PullRequest request;
    request.set_epoch(epoch);
    request.set_version(version);
    request.mutable_blocks()->Add(blocks.begin(), blocks.end());
    return request;
  }

  // ---- the usual way ----
  void Start(const v1::ConfigureRequest& configuration = Configuration()) {
    const grpc::Status configured = Configure(configuration);
    ASSERT_OK(configured);
    const grpc::Status loaded = Load({LoadOf(0), LoadOf(1), LoadOf(2)});
    ASSERT_OK(loaded);
  }
  void PushUnits(uint64_t version = 0) {
    std::vector<v1::PullReply> replies;
    ASSERT_OK(Pull(PullOf(version), &replies));
    for (uint32_t unit = 0; unit < kUnits; ++unit) {
      std::vector<v1::PushRequest> requests;
      for (const uint32_t block : {1u, 2u}) {
        const auto coding = blocks::CodingFromProto(replies[block].coding());
        requests.push_back(PushOf(unit, block, Gradient(unit, block), version, *coding));
      }
      const grpc::Status pushed = Push(requests);
      ASSERT_OK(pushed);
    }
  }
  std::vector<float> Pulled(uint64_t version, uint32_t block) {
    std::vector<v1::PullReply> replies;
    const grpc::Status pulled = Pull(PullOf(version, {block}), &replies);
    EXPECT_OK(pulled);
    return replies.empty() ? std::vector<float>() : Floats(replies[0].weights());
  }
  double Gauge(const std::string& name) {
    for (const absl::string_view line : absl::StrSplit(shard_.metrics().Text(), '\n')) {
      if (line.substr(0, name.size() + 1) == name + " ") return std::stod(std::string(line.substr(name.size() + 1)));
    }
    ADD_FAILURE() << "no metric " << name;
    return 0;
  }
  void AwaitGauge(const std::string& name, double value) {
    const absl::Time until = absl::Now() + absl::Seconds(20);
    while (Gauge(name) != value && absl::Now() < until) std::this_thread::yield();
    EXPECT_EQ(Gauge(name), value);
  }

  static void ExpectError(const grpc::Status& status, grpc::StatusCode code, const std::string& part) {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(part));
  }

  ServedShard shard_;
};

// ---- configuration and epochs ----

TEST_F(ParameterServiceTest, NothingIsServedBeforeItIsConfigured) {
  std::vector<v1::PullReply> pulled;
  std::vector<v1::SnapshotReply> snapshot;
  for (const grpc::Status& status : {Load({LoadOf(0)}), Push({PushOf(0, 1, Gradient(0, 1))}), Pull(PullOf(0), &pulled),
                                     Norms(0), Commit(0), Snapshot(0, &snapshot)}) {
    ExpectError(status, grpc::StatusCode::FAILED_PRECONDITION, "has not been configured");
  }
  EXPECT_EQ(Status().epoch(), 0u);
  EXPECT_FALSE(Status().ready());
  EXPECT_GT(Status().resident_bytes(), 0u);
}

TEST_F(ParameterServiceTest, StatusSaysWhatIsHeld) {
  v1::ConfigureReply reply;
  ASSERT_OK(Configure(Configuration(), &reply));
  EXPECT_EQ(reply.blocks(), 3u);
  EXPECT_EQ(reply.parameters(), 13u);
  v1::LoadReply loaded;
  ASSERT_OK(Load({LoadOf(0, 4), LoadOf(2, 4)}, &loaded));
  EXPECT_EQ(loaded.blocks_loaded(), 2u);
  EXPECT_FALSE(loaded.complete());
  EXPECT_FALSE(Status().ready());
  ASSERT_OK(Load({LoadOf(1, 4)}, &loaded));
  EXPECT_TRUE(loaded.complete());
  EXPECT_EQ(loaded.version(), 4u);
  EXPECT_TRUE(Status().ready());
  EXPECT_EQ(Status().epoch(), kEpoch);
  EXPECT_EQ(Status().version(), 4u);
  EXPECT_EQ(Status().parameters(), 13u);
}

TEST_F(ParameterServiceTest, ConfiguringAgainInTheSameEpochChangesNothing) {
  Start();
  PushUnits();
  v1::ConfigureReply reply;
  ASSERT_OK(Configure(Configuration(), &reply));
  EXPECT_EQ(reply.blocks(), 3u);
  EXPECT_OK(Norms(0));
  v1::ConfigureRequest other = Configuration();
  other.set_units_per_step(kUnits + 1);
  ExpectError(Configure(other), grpc::StatusCode::FAILED_PRECONDITION, "another epoch");
}

TEST_F(ParameterServiceTest, GarbageConfigurationsAreRefused) {
  const struct {
    const char* part;
    std::function<void(v1::ConfigureRequest*)> spoil;
  } cases[] = {
      {"epoch 0", [](auto* request) { request->set_epoch(0); }},
      {"0 shards", [](auto* request) { request->set_shard_count(0); }},
      {"shards", [](auto* request) { request->set_shard_count(1'000'000); }},
      {"shard 1 of 1", [](auto* request) { request->set_shard_index(1); }},
      {"0 units", [](auto* request) { request->set_units_per_step(0); }},
      {"units", [](auto* request) { request->set_units_per_step(1u << 31); }},
      {"empty", [](auto* request) { request->mutable_table()->clear_tensors(); }},
      {"'matrix'", [](auto* request) { request->mutable_table()->mutable_tensors(1)->set_shape(0, -5); }},
      {"too large",
       [](auto* request) { request->mutable_table()->mutable_tensors(1)->set_shape(0, int64_t{1} << 34); }},
      {"no optimizer 'adam'", [](auto* request) { request->mutable_optimizer()->set_type("adam"); }},
      {"betas", [](auto* request) { request->mutable_optimizer()->clear_betas(); }},
      {"lr", [](auto* request) { request->mutable_optimizer()->set_lr(std::nan("")); }},
      {"gradient_bits", [](auto* request) { request->mutable_optimizer()->set_gradient_bits(8); }},
      {"weight_bits are 8", [](auto* request) { request->mutable_optimizer()->set_weight_bits(8); }},
      {"schedule", [](auto* request) { request->mutable_optimizer()->set_schedule("wave"); }},
  };
  for (const auto& [part, spoil] : cases) {
    v1::ConfigureRequest request = Configuration();
    spoil(&request);
    ExpectError(Configure(request), grpc::StatusCode::INVALID_ARGUMENT, part);
  }
  // A model that no machine holds is refused before memory is taken.
  v1::ConfigureRequest request = Configuration();
  request.mutable_table()->mutable_tensors(0)->set_shape(0, int64_t{1} << 35);
  request.mutable_optimizer()->set_type("muon");
  ExpectError(Configure(request), grpc::StatusCode::RESOURCE_EXHAUSTED, "use more shards");
  // The shard has suffered no harm.
  Start();
}

TEST_F(ParameterServiceTest, OldEpochIsRefused) {
  Start();
  PushUnits();
  v1::ConfigureRequest next = Configuration();
  next.set_epoch(kEpoch + 1);
  ASSERT_OK(Configure(next));
  std::vector<v1::PullReply> pulled;
  std::vector<v1::SnapshotReply> snapshot;
  const std::string part = absl::StrCat("epoch ", kEpoch, "; the present one is ", kEpoch + 1);
  for (const grpc::Status& status : {Load({LoadOf(0)}), Push({PushOf(0, 1, Gradient(0, 1))}), Pull(PullOf(0), &pulled),
                                     Norms(0), Commit(0), Snapshot(0, &snapshot)}) {
    ExpectError(status, grpc::StatusCode::FAILED_PRECONDITION, part);
  }
  ExpectError(Configure(Configuration()), grpc::StatusCode::FAILED_PRECONDITION, "is over");
  // What was held is gone.
  EXPECT_FALSE(Status().ready());
  ExpectError(Norms(0, nullptr, kEpoch + 1), grpc::StatusCode::FAILED_PRECONDITION, "0 of 3 blocks are loaded");
}

TEST_F(ParameterServiceTest, AnnouncedEpochFencesTheOneBefore) {
  Start();
  shard_.service().Announce(kEpoch - 1);
  shard_.service().Announce(kEpoch);
  EXPECT_TRUE(Status().ready());
  shard_.service().Announce(kEpoch + 2);
  EXPECT_EQ(Status().epoch(), kEpoch + 2);
  EXPECT_FALSE(Status().ready());
  ExpectError(Norms(0), grpc::StatusCode::FAILED_PRECONDITION, "the present one is");
  ExpectError(Norms(0, nullptr, kEpoch + 2), grpc::StatusCode::FAILED_PRECONDITION, "has not been configured");
  v1::ConfigureRequest between = Configuration();
  between.set_epoch(kEpoch + 1);
  ExpectError(Configure(between), grpc::StatusCode::FAILED_PRECONDITION, "is over");
}

// ---- pulls ----

TEST_F(ParameterServiceTest, PullGivesTheAskedBlocksInTheAskedOrder) {
  Start();
  std::vector<v1::PullReply> replies;
  ASSERT_OK(Pull(PullOf(0, {2, 0}), &replies));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].block(), 2u);
  EXPECT_EQ(Floats(replies[0].weights()), Weights(2));
  EXPECT_EQ(replies[0].crc32c(), Crc32c(replies[0].weights().data(), replies[0].weights().size()));
  EXPECT_EQ(replies[0].coding().bits(), 64u);
  EXPECT_EQ(replies[1].block(), 0u);
  EXPECT_EQ(Floats(replies[1].weights()), Weights(0));
  replies.clear();
  ASSERT_OK(Pull(PullOf(0), &replies));
  ASSERT_EQ(replies.size(), 3u);
  for (uint32_t block = 0; block < 3; ++block) EXPECT_EQ(replies[block].block(), block);
  ExpectError(Pull(PullOf(0, {1, 3}), &replies), grpc::StatusCode::INVALID_ARGUMENT, "there is no block 3");
}

TEST_F(ParameterServiceTest, PullWaitsForItsVersion) {
  Start();
  PushUnits();
  std::vector<float> pulled;
  std::thread puller([&] { pulled = Pulled(1, 1); });
  AwaitGauge("millrace_shard_waiting_pulls", 1);
  EXPECT_OK(Commit(0));
  puller.join();
  EXPECT_NE(pulled, Weights(1));
  EXPECT_EQ(pulled, Pulled(1, 1));
  std::vector<v1::PullReply> replies;
  ExpectError(Pull(PullOf(0), &replies), grpc::StatusCode::FAILED_PRECONDITION, "has passed");
  EXPECT_TRUE(replies.empty());
}

TEST_F(ParameterServiceTest, PullWaitsWhileBlocksAreLoaded) {
  ASSERT_OK(Configure(Configuration()));
  ASSERT_OK(Load({LoadOf(0), LoadOf(2)}));
  std::vector<float> pulled;
  std::thread puller([&] { pulled = Pulled(0, 1); });
  AwaitGauge("millrace_shard_waiting_pulls", 1);
  ASSERT_OK(Load({LoadOf(1)}));
  puller.join();
  EXPECT_EQ(pulled, Weights(1));
}

TEST_F(ParameterServiceTest, CancelledPullReturns) {
  Start();
  grpc::ClientContext context;
  const auto stream = shard_.stub().Pull(&context, PullOf(5));
  AwaitGauge("millrace_shard_waiting_pulls", 1);
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  AwaitGauge("millrace_shard_waiting_pulls", 0);
}

TEST_F(ParameterServiceTest, NewEpochWakesWaitingPulls) {
  Start();
  std::vector<v1::PullReply> replies;
  grpc::Status status;
  std::thread puller([&] { status = Pull(PullOf(5), &replies); });
  AwaitGauge("millrace_shard_waiting_pulls", 1);
  shard_.service().Announce(kEpoch + 1);
  puller.join();
  ExpectError(status, grpc::StatusCode::FAILED_PRECONDITION, "epoch 8 has begun");
}

// ---- loading ----

TEST_F(ParameterServiceTest, GarbageLoadsAreRefused) {
  ASSERT_OK(Configure(Configuration()));
  const struct {
    grpc::StatusCode code;
    const char* part;
    std::function<void(v1::LoadRequest*)> spoil;
  } cases[] = {
      {grpc::StatusCode::INVALID_ARGUMENT, "there is no block 3", [](auto* request) { request->set_block(3); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "matrix[0, 8) comes with 31 bytes of weights; it has 32",
       [](auto* request) {
         request->mutable_weights()->pop_back();
         Seal(request);
       }},
      {grpc::StatusCode::INVALID_ARGUMENT, "matrix[0, 8) comes with 60 bytes of optimizer state; it has 64",
       [](auto* request) {
         request->set_state(std::string(60, '\0'));
         Seal(request);
       }},
      {grpc::StatusCode::INVALID_ARGUMENT, "7 bits", [](auto* request) { request->mutable_coding()->set_bits(7); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "exponent",
       [](auto* request) {
         request->mutable_coding()->set_bits(16);
         request->mutable_coding()->set_exponent(1000);
       }},
      {grpc::StatusCode::INVALID_ARGUMENT, "more steps", [](auto* request) { request->set_version(~uint64_t{0}); }},
      {grpc::StatusCode::DATA_LOSS, "matrix[0, 8) was damaged",
       [](auto* request) { (*request->mutable_weights())[5] ^= 1; }},
  };
  for (const auto& [code, part, spoil] : cases) {
    v1::LoadRequest request = LoadOf(1);
    spoil(&request);
    ExpectError(Load({LoadOf(0), request}), code, part);
  }
  // Nothing of it counts.
  v1::LoadReply reply;
  ASSERT_OK(Load({LoadOf(0)}, &reply));
  EXPECT_EQ(reply.blocks_loaded(), 1u);
  ExpectError(Load({LoadOf(1, 3)}), grpc::StatusCode::FAILED_PRECONDITION, "loaded at version 0");
}

TEST_F(ParameterServiceTest, SecondInitialisationDoesNoHarm) {
  Start();
  PushUnits();
  ASSERT_OK(Commit(0));
  const std::vector<float> trained = Pulled(1, 1);
  v1::LoadReply reply;
  ASSERT_OK(Load({LoadOf(0), LoadOf(1), LoadOf(2)}, &reply));
  EXPECT_TRUE(reply.complete());
  EXPECT_EQ(reply.version(), 1u);
  EXPECT_EQ(Pulled(1, 1), trained);
}

// ---- pushes ----

TEST_F(ParameterServiceTest, GarbagePushesAreRefused) {
  Start();
  const struct {
    grpc::StatusCode code;
    const char* part;
    std::function<void(v1::PushRequest*)> spoil;
  } cases[] = {
      {grpc::StatusCode::INVALID_ARGUMENT, "there is no block 77", [](auto* request) { request->set_block(77); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "frozen[0, 3) is not trained", [](auto* request) { request->set_block(0); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "there is no unit 2; a step has 2",
       [](auto* request) { request->set_unit(2); }},
      {grpc::StatusCode::FAILED_PRECONDITION, "version 1 lies ahead: the shard is at version 0",
       [](auto* request) { request->set_version(1); }},
      {grpc::StatusCode::INVALID_ARGUMENT,
       "matrix[0, 8) comes coded as 16 bits with exponent -36; at version 0 it takes 64",
       [](auto* request) { request->mutable_coding()->set_bits(16); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "9 bits", [](auto* request) { request->mutable_coding()->set_bits(9); }},
      {grpc::StatusCode::INVALID_ARGUMENT, "matrix[0, 8): 63 bytes where",
       [](auto* request) {
         request->mutable_values()->pop_back();
         Seal(request);
       }},
      {grpc::StatusCode::INVALID_ARGUMENT, "matrix[0, 8): a value lies beyond",
       [](auto* request) {
         (*request->mutable_values())[7] = '\x7f';
         Seal(request);
       }},
      {grpc::StatusCode::INVALID_ARGUMENT, "9 saturated values; it has 8",
       [](auto* request) { request->set_saturated(9); }},
      {grpc::StatusCode::DATA_LOSS, "matrix[0, 8) was damaged",
       [](auto* request) { (*request->mutable_values())[0] ^= 1; }},
      {grpc::StatusCode::FAILED_PRECONDITION, "epoch 6", [](auto* request) { request->set_epoch(6); }},
  };
  for (const auto& [code, part, spoil] : cases) {
    v1::PushRequest request = PushOf(0, 1, Gradient(0, 1));
    spoil(&request);
    ExpectError(Push({request}), code, part);
  }
  // Nothing of it counts.
  v1::PushReply reply;
  ASSERT_OK(Push({PushOf(0, 1, Gradient(0, 1))}, &reply));
  EXPECT_EQ(reply.blocks_added(), 1u);
}

TEST_F(ParameterServiceTest, RepeatedPushCountsOnce) {
  Start();
  v1::PushReply reply;
  std::vector<v1::PushRequest> unit = {PushOf(0, 1, Gradient(0, 1)), PushOf(0, 2, Gradient(0, 2))};
  unit[0].set_saturated(3);
  // A stream that broke off after its first block.
  ASSERT_OK(Push({unit[0]}, &reply));
  EXPECT_EQ(reply.blocks_added(), 1u);
  ASSERT_OK(Push(unit, &reply));
  EXPECT_EQ(reply.blocks_added(), 1u);
  EXPECT_EQ(reply.blocks_repeated(), 1u);
  ASSERT_OK(Push({unit[1], unit[0], unit[1]}, &reply));
  EXPECT_EQ(reply.blocks_added(), 0u);
  EXPECT_EQ(reply.blocks_repeated(), 3u);
  ASSERT_OK(Push({PushOf(1, 1, std::vector<float>(8, 0)), PushOf(1, 2, std::vector<float>(2, 0))}));
  v1::NormsReply norms;
  ASSERT_OK(Norms(0, &norms));
  EXPECT_THAT(norms.blocks(), ElementsAre(0, 1, 2));
  EXPECT_EQ(norms.saturated(), 3u);
  double expected = 0;
  for (const float value : Gradient(0, 1)) expected += static_cast<double>(value) * static_cast<double>(value);
  EXPECT_EQ(norms.squared_norms(0), 0);
  EXPECT_NEAR(norms.squared_norms(1), expected, 1e-6 * expected);
}

TEST_F(ParameterServiceTest, PushOfAPassedVersionIsRefused) {
  Start();
  PushUnits();
  ASSERT_OK(Commit(0));
  ExpectError(Push({PushOf(0, 1, Gradient(0, 1))}), grpc::StatusCode::FAILED_PRECONDITION,
              "version 0 has passed: the shard is at version 1");
}

// ---- steps ----

TEST_F(ParameterServiceTest, NormsAndCommitNameWhatIsMissing) {
  Start();
  ASSERT_OK(Push({PushOf(1, 1, Gradient(1, 1)), PushOf(0, 1, Gradient(0, 1)), PushOf(1, 2, Gradient(1, 2))}));
  const std::string part =
      "step 1 is not complete: 1 contributions to blocks of this shard are missing; block bias[0, 2) "
      "lacks unit 0 of 2";
  ExpectError(Norms(0), grpc::StatusCode::FAILED_PRECONDITION, part);
  ExpectError(Commit(0), grpc::StatusCode::FAILED_PRECONDITION, part);
  EXPECT_EQ(Status().version(), 0u);
}

TEST_F(ParameterServiceTest, GarbageCommitsAreRefused) {
  Start();
  PushUnits();
  for (const float factor : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    ExpectError(Commit(0, factor), grpc::StatusCode::INVALID_ARGUMENT, "clipping factor");
  }
  ExpectError(Commit(1), grpc::StatusCode::FAILED_PRECONDITION, "version 1 lies ahead");
  ExpectError(Commit(~uint64_t{0}), grpc::StatusCode::INVALID_ARGUMENT, "more steps");
  EXPECT_EQ(Pulled(0, 1), Weights(1));
}

// AdamW with clipping, schedule and decay, in f64, from the sum of the units' gradients.
TEST_F(ParameterServiceTest, StepsEqualPlainAdamW) {
  Start();
  std::vector<std::vector<double>> w(3), m(3), v(3);
  for (uint32_t block = 0; block < 3; ++block) {
    for (const float weight : Weights(block)) w[block].push_back(static_cast<double>(weight));
    m[block].resize(w[block].size());
    v[block].resize(w[block].size());
  }
  const double clip = 0.25;
  for (uint64_t version = 0; version < 3; ++version) {
    PushUnits(version);
    v1::CommitReply reply;
    ASSERT_OK(Commit(version, static_cast<float>(clip), &reply));
    EXPECT_EQ(reply.version(), version + 1);
    const auto t = static_cast<double>(version + 1);
    // Two steps of warm-up, then a cosine from step 3 to step 10.
    const double lr = 0.01 * (version < 2 ? t / 2 : 0.5 * (1 + std::cos(M_PI * (t - 3) / 8)));
    EXPECT_NEAR(reply.learning_rate(), lr, 1e-12);
    for (const uint32_t block : {1u, 2u}) {
      const std::vector<float> first = Gradient(0, block), second = Gradient(1, block);
      for (size_t i = 0; i < w[block].size(); ++i) {
        const double g = clip * (static_cast<double>(first[i]) + static_cast<double>(second[i]));
        m[block][i] = 0.9 * m[block][i] + 0.1 * g;
        v[block][i] = 0.95 * v[block][i] + 0.05 * g * g;
        const double step =
            m[block][i] / (1 - std::pow(0.9, t)) / (std::sqrt(v[block][i] / (1 - std::pow(0.95, t))) + 1e-8);
        w[block][i] = (block == 1 ? 1 - lr * 0.1 : 1) * w[block][i] - lr * step;
      }
    }
    for (uint32_t block = 0; block < 3; ++block) {
      const std::vector<float> weights = Pulled(version + 1, block);
      for (size_t i = 0; i < weights.size(); ++i) EXPECT_NEAR(weights[i], w[block][i], 1e-5) << block << " " << i;
    }
  }
}

// Unlike AdamW's, its steps are in proportion to the gradient, and so to the clipping factor.
TEST_F(ParameterServiceTest, ClippedStepEqualsPlainSgd) {
  v1::ConfigureRequest configuration = Configuration();
  configuration.mutable_optimizer()->set_type("sgd");
  Start(configuration);
  PushUnits();
  ASSERT_OK(Commit(0, 0.25f));
  const double lr = 0.01 / 2;  // the first of two steps of warm-up
  for (const uint32_t block : {1u, 2u}) {
    const std::vector<float> before = Weights(block), after = Pulled(1, block);
    const std::vector<float> first = Gradient(0, block), second = Gradient(1, block);
    for (size_t i = 0; i < before.size(); ++i) {
      const double decayed = (block == 1 ? 1 - lr * 0.1 : 1) * static_cast<double>(before[i]);
      const double step = lr * 0.25 * (static_cast<double>(first[i]) + static_cast<double>(second[i]));
      // Within the rounding of the weights and, by far, of the step itself.
      EXPECT_NEAR(after[i], decayed - step, 1e-7);
    }
  }
}

TEST_F(ParameterServiceTest, CodingsFollowTheSums) {
  Start();
  std::vector<v1::PushRequest> requests;
  for (uint32_t unit = 0; unit < kUnits; ++unit) {
    requests.push_back(PushOf(unit, 1, {0, 0, 0, 0, -0.375f, 0.25f, 0, 0}));
    requests.push_back(PushOf(unit, 2, {0, 0}));
  }
  ASSERT_OK(Push(requests));
  ASSERT_OK(Commit(0));
  std::vector<v1::PullReply> replies;
  ASSERT_OK(Pull(PullOf(1), &replies));
  EXPECT_EQ(replies[1].coding().bits(), 16u);
  // 0.75 is below 1; 4 of it below 2^15 units of 2^-13.
  EXPECT_EQ(replies[1].coding().exponent(), -13);
  // Of a block without gradient nothing is known yet.
  EXPECT_EQ(replies[2].coding().bits(), 64u);
  EXPECT_EQ(replies[2].coding().exponent(), blocks::kStartExponent);
  EXPECT_EQ(replies[0].coding().bits(), 64u);
}

TEST_F(ParameterServiceTest, RepeatedCommitIsANoOp) {
  Start();
  PushUnits();
  v1::CommitReply first, again;
  ASSERT_OK(Commit(0, 0.5f, &first));
  const std::vector<float> weights = Pulled(1, 1);
  ASSERT_OK(Commit(0, 0.5f, &again));
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(again.version(), 1u);
  EXPECT_EQ(Pulled(1, 1), weights);
  ExpectError(Commit(0, 0.25f), grpc::StatusCode::FAILED_PRECONDITION, "was committed with a clipping factor of 0.5");
  PushUnits(1);
  ASSERT_OK(Commit(1, 0.5f));
  ExpectError(Commit(0, 0.5f), grpc::StatusCode::FAILED_PRECONDITION, "version 0 has passed");
}

TEST_F(ParameterServiceTest, LoadedVersionIsNotTakenForACommit) {
  ASSERT_OK(Configure(Configuration()));
  ASSERT_OK(Load({LoadOf(0, 1), LoadOf(1, 1), LoadOf(2, 1)}));
  ExpectError(Commit(0), grpc::StatusCode::FAILED_PRECONDITION, "version 0 has passed");
}

// ---- snapshots ----

TEST_F(ParameterServiceTest, SnapshotHasWeightsStateAndCodings) {
  Start();
  PushUnits();
  ASSERT_OK(Commit(0));
  std::vector<v1::SnapshotReply> replies;
  ASSERT_OK(Snapshot(1, &replies));
  ASSERT_EQ(replies.size(), 4u);
  EXPECT_TRUE(replies[0].cut());
  EXPECT_TRUE(replies[0].weights().empty());
  for (uint32_t block = 0; block < 3; ++block) {
    const v1::SnapshotReply& reply = replies[block + 1];
    EXPECT_FALSE(reply.cut());
    EXPECT_EQ(reply.block(), block);
    EXPECT_EQ(Floats(reply.weights()), Pulled(1, block));
    EXPECT_EQ(reply.state().size(), block == 0 ? 0u : 2 * reply.weights().size());
    const std::string bytes = absl::StrCat(reply.weights(), reply.state());
    EXPECT_EQ(reply.crc32c(), Crc32c(bytes.data(), bytes.size()));
  }
  EXPECT_EQ(replies[2].coding().bits(), 16u);
  for (const uint64_t version : {0, 2}) {
    ExpectError(Snapshot(version, &replies), grpc::StatusCode::FAILED_PRECONDITION, "the shard is at version 1");
  }
}

// ---- the end ----

TEST_F(ParameterServiceTest, ClosedServiceRefusesAndWakes) {
  Start();
  std::vector<v1::PullReply> replies;
  grpc::Status status;
  std::thread puller([&] { status = Pull(PullOf(5), &replies); });
  AwaitGauge("millrace_shard_waiting_pulls", 1);
  shard_.service().Close();
  puller.join();
  ExpectError(status, grpc::StatusCode::UNAVAILABLE, "shutting down");
  ExpectError(Norms(0), grpc::StatusCode::UNAVAILABLE, "shutting down");
  v1::ConfigureRequest next = Configuration();
  next.set_epoch(kEpoch + 1);
  ExpectError(Configure(next), grpc::StatusCode::UNAVAILABLE, "shutting down");
}

}  // namespace
}  // namespace millrace::ps
