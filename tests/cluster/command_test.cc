// The commands that run local clusters and ask coordinators, as a user types them.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/tiny.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/cluster.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

const std::string& TinyFile() {
  static const auto* path = new std::string(std::string(MILLRACE_SOURCE_DIR) + "/" + kTinyJob);
  return *path;
}

Json ParseJson(const std::string& text) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << text;
  return json;
}

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// A `millrace` that runs beside the test.
class Running {
 public:
  Running(const std::vector<std::string>& arguments, std::string log) : log_(std::move(log)) {
    ChildProcess::Options options;
    options.arguments = arguments;
    options.arguments.insert(options.arguments.begin(), Millrace());
    options.log_file = log_;
    process_ = *ChildProcess::Start(options);
  }
  ChildProcess& process() { return *process_; }
  std::string output() const { return ReadAll(log_); }
  // Waits until the output has `text`.
  void AwaitOutput(const std::string& text) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!absl::StrContains(output(), text)) {
      // Looks again after a moment, or when the process has ended.
      ASSERT_FALSE(process_->Wait(absl::Now() + absl::Milliseconds(5)).has_value()) << output();
      ASSERT_LT(absl::Now(), deadline) << "waited for '" << text << "':\n" << output();
    }
  }
  Ending AwaitEnd() {
    const std::optional<Ending> ending = process_->Wait(absl::Now() + absl::Seconds(60));
    EXPECT_TRUE(ending.has_value()) << output();
    return ending.value_or(Ending{.signal = SIGKILL});
  }

 private:
  const std::string log_;
  std::unique_ptr<ChildProcess> process_;
};

TEST(Train, ShowsProgressAndEndsWithTheModel) {
  const TemporaryFolder folder;
  const std::string directory = folder / "run";
  const Outcome trained = RunMillrace({"train", TinyFile(), "--workers", "2", "--shards", "2", "--dir", directory});
  EXPECT_TRUE(trained.ending.well()) << trained.out;
  EXPECT_THAT(trained.out, AllOf(HasSubstr("tokens to train on"), HasSubstr("held-out loss"), HasSubstr("tokens/s"),
                                 HasSubstr("Job tiny is finished after 60 of 60 steps"), HasSubstr("millrace generate")));
  EXPECT_EQ(TensorDigest(directory + "/jobs/tiny/checkpoints/last"), TinyDigest());
  EXPECT_FALSE(fs::exists(directory + "/cluster.json")) << "the cluster is down";

  const Outcome again = RunMillrace({"train", TinyFile(), "--dir", directory});
  EXPECT_EQ(again.ending.status, 1);
  EXPECT_THAT(again.out, HasSubstr("--resume"));
  const Outcome resumed = RunMillrace({"train", TinyFile(), "--dir", directory, "--resume"});
  EXPECT_TRUE(resumed.ending.well()) << resumed.out;
  EXPECT_THAT(resumed.out, AllOf(HasSubstr("is finished"), Not(HasSubstr("tokens/s"))));
  const Outcome changed = RunMillrace({"train", TinyFile(), "--dir", directory, "--resume", "--set", "seed=7"});
  EXPECT_EQ(changed.ending.status, 1);
  EXPECT_THAT(changed.out, HasSubstr("seed"));
}

TEST(Train, InterruptedRunIsResumed) {
  const TemporaryFolder folder;
  const std::string directory = folder / "run";
  Running train({"train", TinyFile(), "--set", kLonger, "--dir", directory}, folder / "train.log");
  train.AwaitOutput("step 20: held-out loss");
  train.process().Signal(SIGINT);
  EXPECT_EQ(train.AwaitEnd().status, 1);
  EXPECT_THAT(train.output(), HasSubstr("--resume` goes on"));
  EXPECT_FALSE(fs::exists(directory + "/cluster.json"));
  const Outcome resumed = RunMillrace({"train", TinyFile(), "--set", kLonger, "--dir", directory, "--resume", "--workers", "2"});
  EXPECT_TRUE(resumed.ending.well()) << resumed.out;
  EXPECT_THAT(resumed.out, Not(HasSubstr("step 20: held-out loss"))) << "what was done is not done again";
  EXPECT_EQ(TensorDigest(directory + "/jobs/tiny/checkpoints/last"), TinyDigest("long"));
}

TEST(Train, KilledRunIsResumedAndLeavesNoProcesses) {
  const TemporaryFolder folder;
  const std::string directory = folder / "run";
  Running train({"train", TinyFile(), "--set", kLonger, "--dir", directory, "--workers", "2"}, folder / "train.log");
  train.AwaitOutput("step 20: held-out loss");
  const Json state = ParseJson(ReadAll(directory + "/cluster.json"));
  ASSERT_EQ(state["processes"].size(), 4u) << state;
  // Readable when the process has ended.
  std::vector<pollfd> members;
  for (const Json& process : state["processes"]) {
    const auto descriptor = static_cast<int>(syscall(SYS_pidfd_open, process["pid"].get<pid_t>(), 0));
    ASSERT_GE(descriptor, 0) << process;
    members.push_back({.fd = descriptor, .events = POLLIN, .revents = 0});
  }
  train.process().Signal(SIGKILL);
  EXPECT_EQ(train.AwaitEnd().signal, SIGKILL);
  for (pollfd& member : members) {
    EXPECT_EQ(poll(&member, 1, 20'000), 1) << "a process outlives its cluster: " << state;
    close(member.fd);
  }
  const Outcome resumed = RunMillrace({"train", TinyFile(), "--set", kLonger, "--dir", directory, "--resume"});
  EXPECT_TRUE(resumed.ending.well()) << resumed.out;
  EXPECT_EQ(TensorDigest(directory + "/jobs/tiny/checkpoints/last"), TinyDigest("long"));
}

TEST(Train, DeadProcessesAreReplaced) {
  const TemporaryFolder folder;
  const std::string directory = folder / "run";
  Running train({"train", TinyFile(), "--set", kLonger, "--dir", directory, "--workers", "2", "--shards", "2"}, folder / "train.log");
  train.AwaitOutput("step 20: held-out loss");
  const Json state = ParseJson(ReadAll(directory + "/cluster.json"));
  for (const Json& process : state["processes"]) {
    kill(process["pid"].get<pid_t>(), SIGKILL);
  }
  EXPECT_TRUE(train.AwaitEnd().well()) << train.output();
  EXPECT_THAT(train.output(), HasSubstr("it is started again"));
  EXPECT_EQ(TensorDigest(directory + "/jobs/tiny/checkpoints/last"), TinyDigest("long"));
}

TEST(Train, MistakesAreExplained) {
  const TemporaryFolder folder;
  std::ofstream(folder / "bad.yaml") << "name: bad\nmodel: {layer: 2}\n";
  const std::vector<std::tuple<std::vector<std::string>, int, std::string>> cases = {
      {{"train"}, 2, "JOB.yaml is missing"},
      {{"train", "/nowhere.yaml"}, 1, "/nowhere.yaml"},
      {{"train", folder / "bad.yaml"}, 1, "did you mean 'layers'"},
      {{"train", TinyFile(), "--worker", "2"}, 2, "did you mean --workers?"},
      {{"train", TinyFile(), "--workers", "0"}, 2, "--workers"},
      {{"train", TinyFile(), "--set", "model.layer=3"}, 1, "layer"},
      {{"train", TinyFile(), "--resume", "--dir", folder / "absent"}, 1, "nothing to resume"},
      {{"train", TinyFile(), "--dir", "/proc/none"}, 1, "/proc/none"},
      {{"worker", "--coordinator", "x:1", "--max-isa", "sse9"}, 2, "--max-isa"},
      {{"jobs", "--dir", folder / "absent"}, 1, "no cluster runs"},
      {{"jobs", "--coordinator", "127.0.0.1:1"}, 1, "127.0.0.1:1"},
      {{"down", "--dir", folder / "absent"}, 1, "no cluster runs"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Outcome outcome = RunMillrace(arguments);
    EXPECT_EQ(outcome.ending.status, status) << outcome.out;
    EXPECT_THAT(outcome.out, HasSubstr(message));
  }
}

TEST(Commands, EveryHelpShowsAnExample) {
  for (const std::string command : {"train", "up", "down", "submit", "jobs", "watch", "logs", "cancel", "pause",
                                    "resume", "delete", "checkpoints", "coordinator", "ps", "worker"}) {
    const Outcome outcome = RunMillrace({command, "--help"});
    EXPECT_TRUE(outcome.ending.well()) << command;
    EXPECT_THAT(outcome.out, HasSubstr("Example:\n  millrace " + command)) << command;
  }
  EXPECT_THAT(RunMillrace({"--help"}).out, HasSubstr("train"));
}

TEST(Up, StaysUntilDownAndRunsWhatIsSubmitted) {
  const TemporaryFolder folder;
  const std::string directory = folder / "cluster";
  const auto run = [&directory](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--dir", directory});
    return RunMillrace(arguments);
  };
  const Outcome up = run({"up", "--workers", "2", "--shards", "2", "--detach"});
  ASSERT_TRUE(up.ending.well()) << up.out;
  EXPECT_THAT(up.out, HasSubstr("coordinator: 127.0.0.1:"));
  EXPECT_THAT(run({"up", "--detach"}).out, HasSubstr("already"));

  const Outcome watched = run({"submit", TinyFile(), "--watch"});
  EXPECT_TRUE(watched.ending.well()) << watched.out;
  EXPECT_THAT(watched.out, HasSubstr("Job tiny is finished"));
  EXPECT_EQ(TensorDigest(directory + "/jobs/tiny/checkpoints/last"), TinyDigest());
  const Outcome second = run({"submit", TinyFile(), "--set", "phases.0.stop.max_steps=1000000", "--json"});
  EXPECT_EQ(ParseJson(second.out)["id"], "tiny-2");

  const Json jobs = ParseJson(run({"jobs", "--json"}).out);
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs[0]["state"], "SUCCEEDED");
  EXPECT_EQ(jobs[0]["step"], 60);
  EXPECT_THAT(run({"jobs"}).out, AllOf(HasSubstr("tiny-2"), HasSubstr("succeeded")));
  const Json checkpoints = ParseJson(run({"checkpoints", "tiny", "--json"}).out);
  ASSERT_FALSE(checkpoints.empty());
  EXPECT_EQ(checkpoints.back()["digest"], TinyDigest());
  EXPECT_THAT(run({"checkpoints", "tiny"}).out, HasSubstr(TinyDigest().substr(0, 16)));
  EXPECT_THAT(run({"watch", "tiny"}).out, HasSubstr("step 60: held-out loss"));
  EXPECT_THAT(run({"logs", "tiny"}).out, HasSubstr("starts from new weights"));
  EXPECT_THAT(run({"logs", "tiny-7"}).out, HasSubstr("tiny-7"));

  EXPECT_TRUE(run({"pause", "tiny-2"}).ending.well());
  EXPECT_TRUE(run({"resume", "tiny"}).ending.status == 1) << "it has succeeded";
  EXPECT_TRUE(run({"cancel", "tiny-2"}).ending.well());
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (ParseJson(run({"jobs", "--json"}).out)[1]["state"] != "CANCELLED") ASSERT_LT(absl::Now(), deadline);
  EXPECT_TRUE(run({"delete", "tiny-2"}).ending.well());
  EXPECT_EQ(ParseJson(run({"jobs", "--json"}).out).size(), 1u);
  EXPECT_FALSE(fs::exists(directory + "/jobs/tiny-2"));

  const Outcome down = run({"down"});
  EXPECT_TRUE(down.ending.well()) << down.out;
  EXPECT_THAT(run({"jobs"}).out, HasSubstr("no cluster runs"));
}

}  // namespace
}  // namespace millrace::testing
