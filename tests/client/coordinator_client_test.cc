#include "client/coordinator_client.h"

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "client/restarting_server.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/coordinator.grpc.pb.h"
#include "proto/millrace/v1/jobs.grpc.pb.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using text::TemporaryFolder;

// Waits until the client gives the call up.
template <typename Context>
grpc::Status UntilCancelled(Context* context) {
  while (!context->IsCancelled()) std::this_thread::yield();
  return grpc::Status::CANCELLED;
}

// Each WatchJob, FetchCheckpoint and GetJob does what the test wants of it.
class FakeJobs final : public v1::Jobs::Service {
 public:
  using Events = grpc::ServerWriter<v1::JobEvent>;
  using Chunks = grpc::ServerWriter<v1::FileChunk>;
  std::function<grpc::Status(grpc::ServerContext*, const v1::WatchJobRequest&, Events*)> watch;
  std::function<grpc::Status(const v1::FetchCheckpointRequest&, Chunks*)> fetch;
  std::function<grpc::Status(const v1::GetJobRequest&, v1::Job*)> get;

  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request, Events* events) override {
    return watch(context, *request, events);
  }
  grpc::Status FetchCheckpoint(grpc::ServerContext*, const v1::FetchCheckpointRequest* request,
                               Chunks* chunks) override {
    return fetch(*request, chunks);
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* job) override {
    return get(*request, job);
  }
};

v1::JobEvent Event(uint64_t sequence) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  return event;
}

class CoordinatorClientTest : public ::testing::Test {
 protected:
  // The sequence numbers that WatchJob gave, and how it ended.
  std::pair<std::vector<uint64_t>, absl::Status> Watch(CoordinatorClient& client, uint64_t after = 0) {
    std::vector<uint64_t> seen;
    const absl::Status status = client.WatchJob("tiny", after, [&](const v1::JobEvent& event) {
      seen.push_back(event.sequence());
      return true;
    });
    return {seen, status};
  }

  FakeJobs jobs_;
  RestartingServer server_{&jobs_};
};

// ---- calls ----

TEST_F(CoordinatorClientTest, CallsReturnTheReplyOrTheError) {
  jobs_.get = [](const v1::GetJobRequest& request, v1::Job* job) {
    if (request.job_id() != "tiny") return ToGrpc(absl::NotFoundError("no such job"));
    job->set_step(7);
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address());
  const auto job = client.GetJob("tiny");
  ASSERT_OK(job);
  EXPECT_EQ(job->step(), 7u);
  EXPECT_EQ(client.GetJob("other").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client.ListJobs().status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(CoordinatorClientTest, NobodyAtTheAddressIsUnavailableAndNamed) {
  server_.Stop();
  CoordinatorClient client(server_.address(), absl::Milliseconds(50));
  const auto give = [](const v1::JobEvent&) { return true; };
  for (const absl::Status& status :
       {client.GetJob("tiny").status(), client.SubmitJob({}).status(), client.DeleteJob("tiny"),
        client.ReadEvents("tiny", 0, give), client.WatchJob("tiny", 0, give),
        client.FetchCheckpoint("tiny", "best", false, "/tmp/never-made/folder"), client.NextWork({}).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(server_.address()));
  }
}

TEST_F(CoordinatorClientTest, CallsWaitForACoordinatorThatIsNotThereYet) {
  jobs_.get = [](const v1::GetJobRequest&, v1::Job*) { return grpc::Status::OK; };
  server_.Stop();
  CoordinatorClient client(server_.address(), absl::Seconds(30));
  absl::Status status;
  std::thread call([&] { status = client.GetJob("tiny").status(); });
  server_.Start();
  call.join();
  EXPECT_OK(status);
}

// ---- watching ----

TEST_F(CoordinatorClientTest, WatchingGivesEachEventOnceInOrderUntilTheJobHasEnded) {
  jobs_.watch = [](auto*, const v1::WatchJobRequest& request, auto* events) {
    EXPECT_EQ(request.job_id(), "tiny");
    EXPECT_FALSE(request.until_now());
    for (uint64_t i = request.after_sequence() + 1; i <= 5; ++i) events->Write(Event(i));
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address());
  const auto [all, all_status] = Watch(client);
  EXPECT_OK(all_status);
  EXPECT_THAT(all, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(Watch(client, 3).first, ElementsAre(4, 5));
}

TEST_F(CoordinatorClientTest, WatchingEndsWhenNoMoreIsWanted) {
  jobs_.watch = [](auto* context, const v1::WatchJobRequest&, auto* events) {
    events->Write(Event(1));
    events->Write(Event(2));
    return UntilCancelled(context);
  };
  CoordinatorClient client(server_.address());
  int seen = 0;
  EXPECT_OK(client.WatchJob("tiny", 0, [&seen](const v1::JobEvent&) { return ++seen < 2; }));
  EXPECT_EQ(seen, 2);
}

TEST_F(CoordinatorClientTest, WatchingGoesOnFromTheLastEventAfterABreak) {
  std::vector<uint64_t> asked;  // by one call after another
  jobs_.watch = [&](auto*, const v1::WatchJobRequest& request, auto* events) {
    asked.push_back(request.after_sequence());
    if (asked.size() == 1) {
      for (uint64_t i = 1; i <= 3; ++i) events->Write(Event(i));
      return ToGrpc(absl::UnavailableError("broken"));
    }
    if (asked.size() == 2) return ToGrpc(absl::UnavailableError("not yet"));
    // What comes twice all the same is given once.
    for (uint64_t i = 2; i <= 5; ++i) events->Write(Event(i));
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address());
  const auto [seen, status] = Watch(client);
  EXPECT_OK(status);
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(asked, ElementsAre(0, 3, 3));
}

TEST_F(CoordinatorClientTest, WatchingGoesOnAfterARestart) {
  absl::Notification watched, restarted;
  jobs_.watch = [&](auto* context, const v1::WatchJobRequest& request, auto* events) {
    if (!restarted.HasBeenNotified()) {
      events->Write(Event(1));
      events->Write(Event(2));
      return UntilCancelled(context);
    }
    for (uint64_t i = request.after_sequence() + 1; i <= 4; ++i) events->Write(Event(i));
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address(), absl::Seconds(30));
  std::vector<uint64_t> seen;
  absl::Status status;
  std::thread watching([&] {
    status = client.WatchJob("tiny", 0, [&](const v1::JobEvent& event) {
      seen.push_back(event.sequence());
      if (seen.size() == 2) watched.Notify();
      return true;
    });
  });
  watched.WaitForNotification();
  server_.Stop();
  restarted.Notify();
  server_.Start();
  watching.join();
  EXPECT_OK(status);
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4));
}

// A job that waits or is paused has no events for long; that is no sign of a coordinator that is gone.
TEST_F(CoordinatorClientTest, ALongSilenceTakesNothingOffThePatience) {
  const absl::Duration patience = absl::Seconds(1);  // a first connection fits in
  int calls = 0;
  jobs_.watch = [&](auto*, const v1::WatchJobRequest&, auto* events) {
    if (++calls == 1) {
      absl::Notification never;
      never.WaitForNotificationWithTimeout(3 * patience);
      return ToGrpc(absl::UnavailableError("broken"));
    }
    events->Write(Event(1));
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address(), patience);
  const auto [seen, status] = Watch(client);
  EXPECT_OK(status);
  EXPECT_THAT(seen, ElementsAre(1));
}

TEST_F(CoordinatorClientTest, WatchingGivesUpWhenPatienceEnds) {
  jobs_.watch = [](auto*, const v1::WatchJobRequest& request, auto* events) {
    if (request.after_sequence() == 0) events->Write(Event(1));
    return ToGrpc(absl::UnavailableError("broken for good"));
  };
  CoordinatorClient client(server_.address(), absl::Seconds(1));
  const auto [seen, status] = Watch(client);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("broken for good"));
  EXPECT_THAT(seen, ElementsAre(1));
}

TEST_F(CoordinatorClientTest, OtherErrorsOfWatchingAreReturnedAtOnce) {
  int calls = 0;
  jobs_.watch = [&calls](auto*, const v1::WatchJobRequest&, auto*) {
    ++calls;
    return ToGrpc(absl::NotFoundError("no such job"));
  };
  CoordinatorClient client(server_.address());
  EXPECT_EQ(Watch(client).second.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(calls, 1);
}

TEST_F(CoordinatorClientTest, AnInterruptEndsWatchingNowAndFromNowOn) {
  absl::Notification watched;
  jobs_.watch = [&](auto* context, const v1::WatchJobRequest&, auto*) {
    if (!watched.HasBeenNotified()) watched.Notify();
    return UntilCancelled(context);
  };
  CoordinatorClient client(server_.address());
  absl::Status status;
  std::thread watching([&] { status = Watch(client).second; });
  watched.WaitForNotification();
  client.InterruptWatching();
  watching.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Watch(client).second.code(), absl::StatusCode::kCancelled);
}

TEST_F(CoordinatorClientTest, AnInterruptEndsTheWaitForACoordinatorThatIsGone) {
  absl::Notification watched, broken;
  jobs_.watch = [&](auto*, const v1::WatchJobRequest&, auto* events) {
    events->Write(Event(1));
    watched.Notify();
    broken.WaitForNotification();
    return ToGrpc(absl::UnavailableError("broken"));
  };
  CoordinatorClient client(server_.address(), absl::Hours(1));
  absl::Status status;
  std::thread watching([&] { status = Watch(client).second; });
  watched.WaitForNotification();
  broken.Notify();
  server_.Stop();
  client.InterruptWatching();
  watching.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

TEST_F(CoordinatorClientTest, ReadingEventsDoesNotWaitForMore) {
  jobs_.watch = [](auto*, const v1::WatchJobRequest& request, auto* events) {
    EXPECT_TRUE(request.until_now());
    for (uint64_t i = request.after_sequence() + 1; i <= 3; ++i) events->Write(Event(i));
    return grpc::Status::OK;
  };
  CoordinatorClient client(server_.address());
  std::vector<uint64_t> seen;
  EXPECT_OK(client.ReadEvents("tiny", 1, [&seen](const v1::JobEvent& event) {
    seen.push_back(event.sequence());
    return true;
  }));
  EXPECT_THAT(seen, ElementsAre(2, 3));
}

// ---- checkpoints ----

v1::FileChunk Chunk(const std::string& name, uint64_t size, uint64_t offset, const std::string& data) {
  v1::FileChunk chunk;
  chunk.set_name(name);
  chunk.set_size(size);
  chunk.set_offset(offset);
  chunk.set_data(data);
  chunk.set_crc32c(Crc32c(data.data(), data.size()));
  return chunk;
}

class FetchCheckpointTest : public CoordinatorClientTest {
 protected:
  absl::Status Fetch(const std::vector<v1::FileChunk>& chunks, const absl::Status& end = absl::OkStatus()) {
    server_.Stop();  // a call that was given up may still be inside
    jobs_.fetch = [chunks, end](const v1::FetchCheckpointRequest& request, auto* stream) {
      EXPECT_EQ(request.job_id(), "tiny");
      EXPECT_EQ(request.which(), "best");
      EXPECT_TRUE(request.with_optimizer());
      for (const v1::FileChunk& chunk : chunks) stream->Write(chunk);
      return ToGrpc(end);
    };
    server_.Start();
    CoordinatorClient client(server_.address());
    return client.FetchCheckpoint("tiny", "best", /*with_optimizer=*/true, directory_);
  }
  // Everything in the temporary folder.
  std::set<std::string> Left() const {
    std::set<std::string> left;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
      left.insert(std::filesystem::relative(entry.path(), folder_.path()).string());
    }
    return left;
  }

  const TemporaryFolder folder_;
  std::string directory_ = folder_ / "a/checkpoint";
};

TEST_F(FetchCheckpointTest, FilesArriveWhole) {
  std::filesystem::create_directories(folder_ / "b");
  for (const char* name : {"a/checkpoint", "slash/", "b/../up"}) {
    directory_ = folder_ / name;
    const absl::Status status =
        Fetch({Chunk("model.safetensors", 7, 0, "abc"), Chunk("model.safetensors", 7, 3, "defg"),
               Chunk("empty", 0, 0, ""), Chunk("manifest.json", 2, 0, "{}")});
    ASSERT_OK(status);
    const std::string at = std::filesystem::path(directory_ + "/").lexically_normal().string();
    EXPECT_EQ(*ReadFile(at + "model.safetensors", 100), "abcdefg");
    EXPECT_EQ(std::filesystem::file_size(at + "empty"), 0u);
    EXPECT_EQ(std::filesystem::file_size(at + "manifest.json"), 2u);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(at), {}), 3);
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a/checkpoint.fetching"));
}

TEST_F(FetchCheckpointTest, AnExistingFolderIsLeftAlone) {
  folder_.Write("a/checkpoint/mine", "x");
  const absl::Status status = Fetch({Chunk("manifest.json", 2, 0, "{}")});
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr(directory_));
  EXPECT_EQ(Left(), (std::set<std::string>{"a", "a/checkpoint", "a/checkpoint/mine"}));
}

TEST_F(FetchCheckpointTest, ADamagedChunkIsNoticedAndNothingIsLeft) {
  v1::FileChunk damaged = Chunk("model.safetensors", 6, 3, "def");
  (*damaged.mutable_data())[1] ^= 1;
  const absl::Status status =
      Fetch({Chunk("config.json", 2, 0, "{}"), Chunk("model.safetensors", 6, 0, "abc"), damaged});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: the chunk at 3 was damaged"));
  EXPECT_EQ(Left(), std::set<std::string>());
}

TEST_F(FetchCheckpointTest, WhatIsNotWholeLeavesNothing) {
  const std::vector<std::vector<v1::FileChunk>> wrong = {
      {},                                                                     // no file at all
      {Chunk("a", 6, 0, "abc")},                                              // ends early
      {Chunk("a", 6, 0, "abc"), Chunk("b", 1, 0, "b")},                       // goes on too early
      {Chunk("a", 6, 0, "abc"), Chunk("a", 6, 4, "ef")},                      // a gap
      {Chunk("a", 6, 0, "abc"), Chunk("a", 6, 2, "cdef")},                    // an overlap
      {Chunk("a", 6, 3, "def")},                                              // no start
      {Chunk("a", 2, 0, "abc")},                                              // too much
      {Chunk("a", 6, 0, "abc"), Chunk("a", 5, 3, "de")},                      // another size
      {Chunk("a", 1, 0, "a"), Chunk("b", 1, 0, "b"), Chunk("a", 1, 0, "a")},  // a file twice
  };
  for (size_t i = 0; i < wrong.size(); ++i) {
    const absl::Status status = Fetch(wrong[i]);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << i << ": " << status;
    EXPECT_EQ(Left(), std::set<std::string>()) << i;
  }
}

TEST_F(FetchCheckpointTest, FilesStayInTheirFolder) {
  for (const std::string& name : {std::string("../out"), std::string("/tmp/out"), std::string(".."), std::string("."),
                                  std::string("a/b"), std::string(), std::string("a\0b", 3), std::string(129, 'x')}) {
    for (const char* data : {"x", ""}) {
      const absl::Status status = Fetch({Chunk(name, std::string(data).size(), 0, data)});
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << name << ": " << status;
      EXPECT_EQ(Left(), std::set<std::string>()) << name;
    }
  }
}

TEST_F(FetchCheckpointTest, AnErrorOfTheCoordinatorLeavesNothing) {
  const absl::Status status = Fetch({Chunk("a", 6, 0, "abc")}, absl::NotFoundError("the checkpoint was removed"));
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the checkpoint was removed"));
  EXPECT_EQ(Left(), std::set<std::string>());
}

TEST_F(FetchCheckpointTest, FoldersAboveThatWereThereStay) {
  std::filesystem::create_directories(folder_ / "a");
  EXPECT_FALSE(Fetch({}).ok());
  EXPECT_EQ(Left(), std::set<std::string>{"a"});
}

TEST_F(FetchCheckpointTest, WhatAStoppedFetchLeftIsNamed) {
  folder_.Write("a/checkpoint.fetching/part", "x");
  const absl::Status status = Fetch({Chunk("manifest.json", 2, 0, "{}")});
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr(directory_ + ".fetching"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "a/checkpoint.fetching/part"));
}

// ---- work ----

// Answers with a unit of this number; or waits until the call is cancelled.
class FakeCluster final : public v1::Cluster::Service {
 public:
  grpc::Status NextWork(grpc::ServerContext* context, const v1::NextWorkRequest* request,
                        v1::NextWorkReply* reply) override {
    if (request->member_id() == "unknown") return ToGrpc(absl::NotFoundError("no such member"));
    if (request->member_id() == "waiting") {
      in_call.Notify();
      return UntilCancelled(context);
    }
    reply->add_units()->set_unit(static_cast<uint32_t>(request->results_size()));
    return grpc::Status::OK;
  }
  absl::Notification in_call;
};

v1::NextWorkRequest WorkFor(const std::string& member_id) {
  v1::NextWorkRequest request;
  request.set_member_id(member_id);
  return request;
}

TEST(NextWork, ReturnsUnitsOrTheError) {
  FakeCluster cluster;
  const RestartingServer server(&cluster);
  CoordinatorClient client(server.address());
  v1::NextWorkRequest request = WorkFor("w1");
  request.add_results();
  request.add_results();
  const auto reply = client.NextWork(request);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->units(0).unit(), 2u);
  EXPECT_EQ(client.NextWork(WorkFor("unknown")).status().code(), absl::StatusCode::kNotFound);
}

TEST(NextWork, AnInterruptEndsTheCallsInFlightAndNoLaterOnes) {
  FakeCluster cluster;
  const RestartingServer server(&cluster);
  CoordinatorClient client(server.address());
  absl::Status status;
  std::thread call([&] {
    v1::NextWorkRequest request = WorkFor("waiting");
    request.set_wait_ms(60000);
    status = client.NextWork(request).status();
  });
  cluster.in_call.WaitForNotification();
  client.InterruptNextWork();
  call.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_OK(client.NextWork(WorkFor("w1")));
}

}  // namespace
}  // namespace millrace::client
