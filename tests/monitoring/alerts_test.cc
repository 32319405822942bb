// Real troubles of real processes, and the alert that a real Prometheus raises about each. files_test.cc holds the list
// of alerts to this file: each must be waited for here.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/machine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "monitoring/prometheus.h"
#include "re2/re2.h"
#include "testing/cluster.h"
#include "testing/http_exchange.h"
#include "testing/role_certificates.h"
#include "testing/status.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;

constexpr char kTiny[] = "examples/tiny.yaml";
constexpr char kForever[] = "phases.0.stop.max_steps=1000000";
constexpr char kNoPrometheus[] = "there is no prometheus; ./test fetches it";

// Lets members run for 10 ms after each pause only, as a machine does that has far more to do than it can.
class Throttle {
 public:
  Throttle(std::vector<Member*> members, absl::Duration pause)
      : thread_([this, members = std::move(members), pause] {
          while (!over_.HasBeenNotified()) {
            for (Member* const member : members) member->Stop();
            over_.WaitForNotificationWithTimeout(pause);
            for (Member* const member : members) member->Continue();
            over_.WaitForNotificationWithTimeout(absl::Milliseconds(10));
          }
        }) {}
  ~Throttle() {
    over_.Notify();
    thread_.join();
  }

 private:
  absl::Notification over_;
  std::thread thread_;
};

int64_t Living(Cluster& cluster, const char* role) {
  const auto reply = cluster.client().ListMembers();
  EXPECT_OK(reply);
  return std::count_if(reply->members().begin(), reply->members().end(),
                       [role](const v1::ClusterMember& member) { return member.role() == role; });
}

TEST(Alerts, OfMembersThatHangOrEnd) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  Cluster cluster({.workers = 2, .shards = 2, .lease_seconds = 2, .metrics = true});
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  const std::string job = cluster.Submit(kTiny, {kForever});
  prometheus.AwaitTargets(5);
  cluster.AwaitStep(job, 20);
  prometheus.AwaitAlert("MillraceWatchdog");

  // Workers that hang: their leases are freed, nobody is left, nothing is committed.
  for (size_t i = 0; i < 2; ++i) cluster.worker(i).Stop();
  prometheus.AwaitAlert("MillraceTargetDown");
  prometheus.AwaitAlert("MillraceUnitsLeasedAgain");
  prometheus.AwaitAlert("MillraceNoWorkers");
  prometheus.AwaitAlert("MillraceTrainingStalled", job);
  for (size_t i = 0; i < 2; ++i) cluster.worker(i).Continue();
  for (const char* alert : {"MillraceTargetDown", "MillraceNoWorkers"}) prometheus.AwaitCalm(alert);
  prometheus.AwaitCalm("MillraceTrainingStalled", job);

  // A shard that is killed, and then again and again.
  cluster.shard(1).Kill();
  prometheus.AwaitAlert("MillraceTargetDown");
  prometheus.AwaitAlert("MillraceShardMissing");
  cluster.shard(1).Restart();
  prometheus.AwaitCalm("MillraceTargetDown");
  prometheus.AwaitCalm("MillraceShardMissing");
  const auto fire = [&](std::initializer_list<const char*> alerts) {
    const std::set<std::string> firing = prometheus.Firing();
    return std::all_of(alerts.begin(), alerts.end(), [&](const char* alert) { return firing.contains(alert); });
  };
  prometheus.Until("a shard that is killed often enough", [&] {
    const std::string start = "max(process_start_time_seconds{job=\"millrace-shard\"})";
    const std::string scraped = prometheus.Query(start)[0]["value"][1];
    cluster.shard(1).Kill();
    cluster.shard(1).Restart();
    prometheus.Until("a scrape of the new shard", [&] { return prometheus.Query(start)[0]["value"][1] != scraped; });
    cluster.AwaitStep(job, cluster.Job(job).step() + 1);
    return fire({"MillraceRecoveries", "MillraceProcessRestarts"});
  });
  prometheus.AwaitAlert("MillraceRecoveries");
  prometheus.AwaitAlert("MillraceProcessRestarts");

  // Workers that do not stay.
  prometheus.Until("workers that are killed often enough", [&] {
    for (size_t i = 0; i < 2; ++i) cluster.worker(i).Kill();
    prometheus.Until("the workers' end", [&] { return Living(cluster, "worker") == 0; });
    for (size_t i = 0; i < 2; ++i) cluster.worker(i).Restart();
    prometheus.Until("the workers' return", [&] { return Living(cluster, "worker") == 2; });
    return fire({"MillraceMembersComeAndGo"});
  });
  prometheus.AwaitAlert("MillraceMembersComeAndGo");
}

TEST(Alerts, OfSlowWorkers) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  Cluster cluster({.workers = 2, .metrics = true});
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  const std::string job = cluster.Submit(kTiny, {kForever});
  prometheus.AwaitTargets(4);
  prometheus.Until("three seconds of what is usual", [&] {
    return !prometheus.Query("count_over_time(train_job_phase:millrace_trained_tokens:rate5m[10s]) > 15").empty();
  });
  {
    const Throttle both({&cluster.worker(0), &cluster.worker(1)}, absl::Milliseconds(390));
    prometheus.AwaitAlert("MillraceThroughputDropped", job);
  }
  prometheus.AwaitCalm("MillraceThroughputDropped", job);
  // So short that it answers each scrape.
  const Throttle one({&cluster.worker(1)}, absl::Milliseconds(90));
  prometheus.AwaitAlert("MillraceStraggler");
}

TEST(Alerts, OfTrainingThatGoesWrong) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  Cluster cluster({.workers = 3, .shards = 4, .metrics = true});
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  prometheus.AwaitTargets(8);

  // A loss that explodes.
  const std::string explodes = cluster.Submit(
      kTiny, {"phases.0.optimizer.type=sgd", "phases.0.optimizer.lr=100", "phases.0.optimizer.clip_norm=0",
              "phases.0.optimizer.weight_decay=0", "phases.0.optimizer.warmup_steps=0", "model.init_std=10",
              "phases.0.optimizer.schedule=constant", "model.family=llama"});
  cluster.AwaitFailure(explodes);
  prometheus.AwaitFired("MillraceLossNotFinite");
  prometheus.AwaitFired("MillraceJobFailed");

  // A text that is learnt by heart: there is nothing in it that the held-out part has too.
  std::string random;
  uint32_t state = 1;
  const auto letter = [&state] { return static_cast<char>('a' + (state = state * 1664525 + 1013904223) / (1u << 28)); };
  for (int i = 0; i < 1200; ++i) random.push_back(letter());
  WriteText(folder.path() / "random.txt", random);
  const std::string tiny = ReadText(fs::path(MILLRACE_SOURCE_DIR) / kTiny);
  WriteText(folder.path() / "random.yaml", absl::StrReplaceAll(tiny, {{"tiny.txt", "random.txt"}}));
  const std::string learns_by_heart =
      cluster.Submit(folder / "random.yaml", {"data.held_out=0.25", "tokenizer.type=char", "model.dropout=0",
                                              "phases.0.optimizer.schedule=constant",
                                              "phases.0.evaluate.every_steps=10", "phases.0.global_batch=4", kForever});
  prometheus.AwaitAlert("MillraceLossRising", learns_by_heart);
  EXPECT_OK(cluster.client().CancelJob(learns_by_heart));

  // Nearly always the same, and seldom what nobody could expect: gradients outgrow the range that the last one gave.
  // And an optimizer of whole matrices where one is larger than all others together.
  std::string dull;
  for (int i = 0; i < 1500; ++i) {
    dull += "All work and no play makes Jack a dull boy.\n";
    if (i % 40 == 0) {
      for (int j = 0; j < 60; ++j) dull.push_back(letter());
    }
  }
  WriteText(folder.path() / "dull.txt", dull);
  WriteText(folder.path() / "dull.yaml", absl::StrReplaceAll(tiny, {{"tiny.txt", "dull.txt"}}));
  const std::string surprised = cluster.Submit(
      folder / "dull.yaml", {"model.layers=1", "model.dropout=0", "phases.0.global_batch=2", "phases.0.microbatch=1",
                             "phases.0.optimizer.type=muon", "phases.0.optimizer.schedule=constant", kForever});
  prometheus.AwaitAlert("MillraceSumsSaturate");
  prometheus.AwaitAlert("MillraceHotShard");
  EXPECT_OK(cluster.client().CancelJob(surprised));

  // Microbatches whose attention takes more memory than there is: every worker fails, as often as it tries.
  constexpr uint64_t kContext = 1024, kHeads = 24;
  const uint64_t rows = MemoryLimit() / sizeof(float) / (2 * kHeads * kContext * kContext) + 1;
  const std::string too_large =
      cluster.Submit(folder / "dull.yaml",
                     {"tokenizer.type=char", absl::StrCat("model.context=", kContext),
                      absl::StrCat("model.heads=", kHeads), absl::StrCat("model.hidden_size=", 2 * kHeads),
                      absl::StrCat("phases.0.microbatch=", rows), absl::StrCat("phases.0.global_batch=", 4 * rows)});
  prometheus.AwaitFired("MillraceUnitsFail");
  EXPECT_THAT(cluster.worker(0).log(), ::testing::HasSubstr("out of memory"));
}

// A minute is 20 ms here, so that hours are short too.
TEST(Alerts, OfWhatGoesWrongSlowly) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  Cluster cluster({.metrics = true});
  const std::string job = cluster.Submit(
      kTiny, {kForever, "phases.0.evaluate.every_steps=1000000", "phases.0.checkpoint.every_steps=1000000"});
  cluster.AwaitStep(job, 1);

  // A worker of another build: ours, under the next version's number.
  std::string program = ReadText(Millrace());
  const std::string version = std::string(1, '\0') + MILLRACE_VERSION + std::string(1, '\0');
  const size_t at = program.find(version);
  ASSERT_NE(at, std::string::npos);
  program[at + version.size() - 2] = '9';
  WriteText(folder / "millrace", program);
  fs::permissions(folder / "millrace", fs::perms::owner_all);
  ChildProcess::Options options;
  const std::string metrics = FreeAddress();
  options.arguments = {folder / "millrace", "worker", "--coordinator", cluster.coordinator().address(),
                       "--threads",         "1",      "--metrics",     metrics};
  options.log_file = folder / "other.log";
  const auto other = ChildProcess::Start(options);
  ASSERT_OK(other);
  Targets targets = TargetsOf(cluster);
  targets.workers.push_back(metrics);
  Prometheus prometheus(folder.path() / "prometheus", targets, /*minute=*/absl::Milliseconds(20));
  prometheus.AwaitAlert("MillraceVersionSkew");
  EXPECT_TRUE(
      prometheus.Found(absl::StrCat(R"(millrace_build_info{build=~"millrace 0.*9, .*", instance=")", metrics, "\"}")));
  prometheus.AwaitAlert("MillraceCheckpointStale", job);
}

// What is mounted from now on is seen by this thread and the processes that it starts, and goes with them. Why not, if
// it is not so.
std::string OwnMounts() {
  if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0) return "";
  return absl::StrCat("file systems can be mounted by root only: ", std::strerror(errno));
}

// A file system of so many MiB in memory, until the object goes.
class SmallDisk {
 public:
  SmallDisk(const std::string& folder, int mebibytes) : folder_(folder) {
    fs::create_directories(folder);
    if (mount("tmpfs", folder.c_str(), "tmpfs", 0, absl::StrCat("size=", mebibytes, "m").c_str()) != 0) {
      trouble_ = std::strerror(errno);
    }
  }
  ~SmallDisk() {
    if (trouble_.empty()) umount2(folder_.c_str(), MNT_DETACH);
  }
  // Why there is none.
  const std::string& trouble() const { return trouble_; }
  // All but so many bytes.
  void Fill(uint64_t but) {
    const int file = open((folder_ + "/filling").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const uint64_t more = fs::space(folder_).available - but;
    EXPECT_EQ(posix_fallocate(file, static_cast<off_t>(fs::file_size(folder_ + "/filling")), static_cast<off_t>(more)),
              0);
    close(file);
  }
  void Free() { fs::remove(folder_ + "/filling"); }

 private:
  const std::string folder_;
  std::string trouble_;
};

TEST(Alerts, OfAFullDisk) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  if (const std::string trouble = OwnMounts(); !trouble.empty()) GTEST_SKIP() << trouble;
  const TemporaryFolder folder;
  SmallDisk disk(folder / "disk", 64);
  ASSERT_EQ(disk.trouble(), "");
  Cluster cluster({.directory = folder / "disk/coordinator", .metrics = true});
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  prometheus.AwaitTargets(3);
  disk.Fill(/*but=*/4 << 20);
  prometheus.AwaitAlert("MillraceDiskNearlyFull");
  EXPECT_FALSE(prometheus.Firing().contains("MillraceDiskFull"));
  disk.Fill(/*but=*/0);
  prometheus.AwaitAlert("MillraceDiskFull");
  // Nothing can be taken in.
  v1::SubmitJobRequest request;
  request.set_job_yaml(ReadText(fs::path(MILLRACE_SOURCE_DIR) / kTiny));
  request.set_base_directory(MILLRACE_SOURCE_DIR "/examples");
  prometheus.Until("MillraceRpcErrors of SubmitJob", [&] {
    EXPECT_FALSE(cluster.client().SubmitJob(request).ok());
    return prometheus.Firing().contains("MillraceRpcErrors");
  });
  prometheus.AwaitAlert("MillraceRpcErrors");
  disk.Free();
  for (const char* alert : {"MillraceDiskFull", "MillraceDiskNearlyFull", "MillraceRpcErrors"}) {
    prometheus.AwaitCalm(alert);
  }
  EXPECT_OK(cluster.client().SubmitJob(request));
}

// A control group at the root, until the object goes; the processes in it must have ended before.
class SmallGroup {
 public:
  explicit SmallGroup(uint64_t bytes) {
    const bool second = fs::exists("/sys/fs/cgroup/cgroup.controllers");
    const std::string mount = second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    folder_ = absl::StrCat(mount, "/", name_);
    std::error_code error;
    std::string own;
    RE2::PartialMatch(ReadText("/proc/self/cgroup"),
                      second ? "(?m)^0::(/.*)$" : "(?m)^\\d+:[^:]*\\bmemory\\b[^:]*:(/.*)$", &own);
    if (own.empty() || !fs::exists(mount + own, error)) {
      trouble_ = absl::StrCat("the group ", own, " of this process is not at ", mount);
      return;
    }
    if (!fs::create_directory(folder_, error)) {
      trouble_ = absl::StrCat(folder_, ": ", error.message());
      return;
    }
    const std::string limit = folder_ + (second ? "/memory.max" : "/memory.limit_in_bytes");
    if (!fs::exists(limit, error)) {
      trouble_ = absl::StrCat("control groups at ", mount, " do not bound memory");
      return;
    }
    WriteText(limit, absl::StrCat(bytes));
  }
  ~SmallGroup() {
    if (trouble_.empty()) rmdir(folder_.c_str());
  }
  const std::string& trouble() const { return trouble_; }

  // A command of the shell in the group.
  std::unique_ptr<ChildProcess> Start(const std::string& command, const std::string& log_file) const {
    ChildProcess::Options options;
    options.arguments = {"/bin/sh", "-c", absl::StrCat("echo 0 > ", folder_, "/cgroup.procs && ", command)};
    options.log_file = log_file;
    auto process = ChildProcess::Start(options);
    EXPECT_OK(process);
    return *std::move(process);
  }

 private:
  const std::string name_ = absl::StrCat("millrace-test-", getpid());
  std::string folder_;
  std::string trouble_;
};

TEST(Alerts, OfMemoryThatRunsOut) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  constexpr uint64_t kLimit = 512 << 20;
  const TemporaryFolder folder;
  const SmallGroup group(kLimit);
  if (!group.trouble().empty()) GTEST_SKIP() << "a control group can be made by root of a machine: " << group.trouble();
  Cluster cluster({.shards = 1, .metrics = true});
  const std::string metrics = FreeAddress();
  const auto shard = group.Start(
      absl::StrCat("exec ", Millrace(), " ps --coordinator ", cluster.coordinator().address(), " --metrics ", metrics),
      folder / "shard.log");
  Targets targets = TargetsOf(cluster);
  targets.shards.push_back(metrics);
  Prometheus prometheus(folder.path() / "prometheus", targets);
  prometheus.AwaitTargets(4);
  const std::string of_shard = absl::StrCat("{instance=\"", metrics, "\"}");
  EXPECT_EQ(prometheus.Query("process_memory_limit_bytes" + of_shard)[0]["value"][1], absl::StrCat(kLimit));
  double available = 0;
  ASSERT_TRUE(absl::SimpleAtod(
      prometheus.Query("process_available_memory_bytes" + of_shard)[0]["value"][1].get<std::string>(), &available));
  EXPECT_GT(available, kLimit / 2);
  EXPECT_LT(available, kLimit);
  // Something else in the group takes all but 3 %, and keeps it as long as this test lives.
  const auto bytes = static_cast<uint64_t>(available - 0.03 * kLimit);
  const auto other = group.Start(
      absl::StrCat("{ head -c ", bytes, " /dev/zero; tail -f --pid=", getpid(), " /dev/null; } | tail -c ", bytes),
      folder / "other.log");
  prometheus.AwaitAlert("MillraceMemoryNearLimit");
  // Of the shard alone: the others have the machine's.
  EXPECT_EQ(prometheus.Query(R"(ALERTS{alertname="MillraceMemoryNearLimit"})").size(), 1u);
  other->KillGroup();
  prometheus.AwaitCalm("MillraceMemoryNearLimit");
  shard->KillGroup();
}

// A file system over a folder whose server does not answer: whoever looks at it hangs, until the object goes.
class DeadFileSystem {
 public:
  explicit DeadFileSystem(const std::string& folder) : folder_(folder), device_(open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
    const std::string options = absl::StrCat("fd=", device_, ",rootmode=40000,user_id=0,group_id=0");
    if (device_ < 0 || mount("dead", folder.c_str(), "fuse", 0, options.c_str()) != 0) trouble_ = std::strerror(errno);
  }
  ~DeadFileSystem() {
    if (trouble_.empty()) umount2(folder_.c_str(), MNT_DETACH);
    if (device_ >= 0) close(device_);  // who hangs gets an error
  }
  const std::string& trouble() const { return trouble_; }

 private:
  const std::string folder_;
  const int device_;
  std::string trouble_;
};

TEST(Alerts, OfAQueueThatIsStuck) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  if (const std::string trouble = OwnMounts(); !trouble.empty()) GTEST_SKIP() << trouble;
  const TemporaryFolder folder;
  fs::create_directories(folder / "near");
  fs::create_directories(folder / "far");
  for (const char* file : {"tiny.yaml", "tiny.txt"}) {
    for (const char* to : {"near/", "far/"}) {
      fs::copy(fs::path(MILLRACE_SOURCE_DIR) / "examples" / file, folder / (std::string(to) + file));
    }
  }
  Cluster cluster({.data_root = folder.path().string(), .metrics = true});
  const std::string first = cluster.Submit(folder / "near/tiny.yaml", {kForever});
  const std::string second = cluster.Submit(folder / "far/tiny.yaml");
  cluster.AwaitStep(first, 1);
  auto dead = std::make_unique<DeadFileSystem>(folder / "far");
  if (!dead->trouble().empty()) GTEST_SKIP() << "no file system of user space could be mounted: " << dead->trouble();
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  prometheus.AwaitTargets(3);
  EXPECT_OK(cluster.client().CancelJob(first));
  prometheus.AwaitAlert("MillraceQueueStuck");
  EXPECT_EQ(cluster.Job(second).state(), v1::Job::QUEUED);
  dead.reset();
  prometheus.AwaitCalm("MillraceQueueStuck");
}

TEST(Alerts, OfACertificateThatEndsSoon) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  const TestAuthority authority;
  const auto place = [&](Role role, int days) {
    CertificateRequest request = TestAuthority::Request(role);
    request.not_after = absl::Now() + absl::Hours(24) * days;
    authority.Place(folder / std::string(RoleName(role)), request);
  };
  place(Role::kCoordinator, 13);
  for (const Role role : {Role::kShard, Role::kWorker, Role::kOperator}) place(role, 30);
  Cluster cluster({.certificates = folder.path().string(), .metrics = true});
  Prometheus prometheus(folder.path() / "prometheus", TargetsOf(cluster));
  prometheus.AwaitTargets(3);
  prometheus.AwaitAlert("MillraceCertificateExpires");
  // Of the coordinator alone.
  EXPECT_EQ(prometheus.Query(R"(ALERTS{alertname="MillraceCertificateExpires"})").size(), 1u);
  // A new one is taken up without a restart.
  place(Role::kCoordinator, 30);
  prometheus.AwaitCalm("MillraceCertificateExpires");
}

TEST(Alerts, OfAServerThatHasTooMuchToDo) {
  if (FindPrometheus().empty()) GTEST_SKIP() << kNoPrometheus;
  const TemporaryFolder folder;
  Cluster cluster({});
  const std::string job = cluster.Submit(kTiny);
  cluster.AwaitSuccess(job);
  const Serving serving(cluster.Checkpoint(job, "best"), folder.path(), {"--sequences", "1"});
  // It is all that Prometheus is told of.
  Prometheus prometheus(folder.path() / "prometheus", {.serve = {serving.address()}});
  prometheus.AwaitTargets(1);

  std::atomic<bool> over = false;
  std::vector<std::thread> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back([&] {
      const std::string request = PostBytes(
          "/v1/completions", R"({"model": "best", "prompt": "a", "max_tokens": 24, "n": 16})", "Connection: close\r\n");
      while (!over) EXPECT_THAT(Exchange(serving.address(), request), ::testing::HasSubstr(" 200 "));
    });
  }
  prometheus.AwaitAlert("MillraceServeBusy");
  over = true;
  for (std::thread& client : clients) client.join();
  prometheus.AwaitCalm("MillraceServeBusy");
  prometheus.AwaitAlert("MillraceCoordinatorAbsent");
}

}  // namespace
}  // namespace millrace::testing
