// What is damaged, absent, full or hostile gets its clear error, and the job stays usable.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "client/coordinator_client.h"
#include "cluster/tiny.h"
#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/conformance.h"
#include "testing/cluster.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

sockaddr_in SocketAddress(const std::string& address) {
  const std::vector<std::string> parts = absl::StrSplit(address, ':');
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(parts.back(), &port));
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<uint16_t>(port));
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return where;
}

// Connects, says this, and hangs up.
void Send(const std::string& address, const std::string& bytes) {
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in where = SocketAddress(address);
  ASSERT_EQ(connect(connection, reinterpret_cast<const sockaddr*>(&where), sizeof(where)), 0) << address;
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t some = send(connection, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (some <= 0) break;  // hung up on: fine
    sent += static_cast<size_t>(some);
  }
  close(connection);
}

std::string Noise(uint64_t seed, size_t size) {
  std::string bytes;
  for (uint64_t i = 0; bytes.size() < size; ++i) {
    const auto words = Philox(seed)(0, i);
    bytes.append(reinterpret_cast<const char*>(words.data()), sizeof(words));
  }
  bytes.resize(size);
  return bytes;
}

std::string Notes(Cluster* cluster, const std::string& job) {
  std::string text;
  const absl::Status read = cluster->client().ReadEvents(job, 0, [&text](const v1::JobEvent& event) {
    if (event.has_log()) absl::StrAppend(&text, event.log().severity(), ": ", event.log().text(), "\n");
    return true;
  });
  EXPECT_OK(read);
  return text;
}

void FlipBit(const std::string& path, uintmax_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  ASSERT_TRUE(file.good()) << path;
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

TEST(Trouble, GarbageOnEveryPortDisturbsNothing) {
  Cluster cluster({.workers = 1, .shards = 2});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 2);
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  for (const std::string& address : {cluster.coordinator().address(), cluster.shard(0).address(),
                                     cluster.shard(1).address()}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Send(address, Noise(seed, 1 << (2 * seed)));
      Send(address, preface + Noise(100 + seed, 1 << (2 * seed)));
    }
    Send(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    Send(address, std::string(1 << 20, '\0'));
    Send(address, "");
  }
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
  EXPECT_TRUE(cluster.coordinator().running());
  EXPECT_TRUE(cluster.shard(0).running());
  EXPECT_TRUE(cluster.shard(1).running());
}

TEST(Trouble, WorkerThatComputesOtherBitsIsRefused) {
  Cluster cluster({.workers = 0, .shards = 1});
  absl::Notification never;
  client::Membership::Options options;
  options.coordinator = cluster.coordinator().address();
  options.join.set_role(v1::WORKER);
  options.join.set_name("odd-one");
  options.join.set_build("build of yesterday");
  options.join.set_processor("a processor of its own");
  options.join.set_conformance_digest(std::string(64, '0'));
  const absl::Status refused = client::Membership::Join(options, &never).status();
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  for (const char* part : {"odd-one", "build of yesterday", "a processor of its own", "other bits"}) {
    EXPECT_THAT(std::string(refused.message()), HasSubstr(part));
  }
}

TEST(Trouble, JobWaitsForAShardThatCannotBeReached) {
  Cluster cluster({.workers = 1, .shards = 1, .lease_seconds = 2});
  cluster.shard(0).Terminate();
  // Joined, but nobody serves at its address.
  absl::Notification never;
  client::Membership::Options options;
  options.coordinator = cluster.coordinator().address();
  options.join.set_role(v1::SHARD);
  options.join.set_name("unreachable");
  options.join.set_address("127.0.0.1:1");
  options.join.set_conformance_digest(ps::ConformanceDigest());
  absl::StatusOr<std::unique_ptr<client::Membership>> member = client::Membership::Join(options, &never);
  ASSERT_OK(member);
  const std::string job = cluster.Submit(kTinyJob, {"phases.0.stop.max_steps=5"});
  cluster.Await(job, "a note of the shard", [&](const v1::Job&) {
    return absl::StrContains(Notes(&cluster, job), "127.0.0.1:1");
  });
  EXPECT_EQ(cluster.Job(job).state(), v1::Job::RUNNING);
  member->reset();
  cluster.shard(0).Restart();
  cluster.AwaitSuccess(job);
}

TEST(Trouble, FullDiskFailsTheJobWhichGoesOnOnceThereIsRoom) {
  const TemporaryFolder folder;
  const std::string disk = folder / "disk";
  fs::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "SKIPPED: mounting a small tmpfs is not permitted here (" << std::strerror(errno) << ")";
  }
  struct Unmount {
    std::string path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } unmount{disk};
  Cluster cluster({.workers = 1, .shards = 1, .directory = disk + "/coordinator"});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 1);
  {
    // What is left goes to a file; a few checkpoints fit before it is there, or none.
    std::ofstream filler(disk + "/filler", std::ios::binary);
    const std::string piece(4096, 'x');
    while (filler.write(piece.data(), static_cast<std::streamsize>(piece.size())).flush()) {
    }
  }
  const v1::Job failed = cluster.AwaitFailure(job);
  EXPECT_THAT(failed.error(), ::testing::AnyOf(HasSubstr("No space left"), HasSubstr("disk is full"))) << failed.error();
  fs::remove(disk + "/filler");
  ASSERT_OK(cluster.client().ResumeJob(job));
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
}

TEST(Trouble, TruncatedTokenStoreIsNoticedAndMadeAgain) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 15);
  cluster.KillAll();
  const std::string tokens = cluster.directory() + "/jobs/" + job + "/data/train.tokens";
  fs::resize_file(tokens, fs::file_size(tokens) / 2);
  cluster.StartAll();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
  EXPECT_THAT(Notes(&cluster, job), HasSubstr("train.tokens"));
}

TEST(Trouble, DamagedCheckpointIsSetAsideForTheOneBefore) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 35);
  cluster.KillAll();
  const std::string last = fs::canonical(cluster.Checkpoint(job, "last")).string();
  const std::string weights = last + "/model.safetensors";
  FlipBit(weights, fs::file_size(weights) - 5);
  cluster.StartAll();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
  EXPECT_THAT(Notes(&cluster, job), HasSubstr(fs::path(last).filename().string() + " is damaged"));
}

TEST(Trouble, DamagedOptimizerStateIsNoticedToo) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob);
  cluster.AwaitStep(job, 35);
  cluster.KillAll();
  const std::string last = fs::canonical(cluster.Checkpoint(job, "last")).string();
  FlipBit(last + "/optimizer.safetensors", fs::file_size(last + "/optimizer.safetensors") / 2);
  cluster.StartAll();
  cluster.AwaitSuccess(job);
  EXPECT_EQ(cluster.LastDigest(job), TinyDigest());
  EXPECT_THAT(Notes(&cluster, job), HasSubstr("optimizer.safetensors"));
}

TEST(Trouble, LossThatIsNotFiniteFailsTheJobAndSaysWhere) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(
      kTinyJob, {"phases.0.optimizer.type=sgd", "phases.0.optimizer.lr=100", "phases.0.optimizer.clip_norm=0",
                 "phases.0.optimizer.weight_decay=0", "phases.0.optimizer.warmup_steps=0", "model.init_std=10",
                 "phases.0.optimizer.schedule=constant", "model.family=llama"});
  const v1::Job failed = cluster.AwaitFailure(job);
  EXPECT_THAT(failed.error(), HasSubstr("not finite"));
  EXPECT_THAT(failed.error(), HasSubstr("step"));
  // The cluster takes the next job.
  cluster.AwaitSuccess(cluster.Submit(kTinyJob, {"phases.0.stop.max_steps=5"}));
}

TEST(Trouble, TextThatIsNotThereFailsTheJobAndNamesIt) {
  Cluster cluster({.workers = 1, .shards = 1});
  const std::string job = cluster.Submit(kTinyJob, {"data.sources.0.path=no-such-text.txt"});
  EXPECT_THAT(cluster.AwaitFailure(job).error(), HasSubstr("no-such-text.txt"));
}

}  // namespace
}  // namespace millrace::testing
