#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using text::TemporaryFolder;

constexpr absl::Duration kPatience = absl::Seconds(30);

std::unique_ptr<ChildProcess> Shell(const std::string& script, const std::string& log_file = "/dev/null",
                                    bool dies_with_parent = true) {
  auto child = ChildProcess::Start(
      {.arguments = {"/bin/sh", "-c", script}, .log_file = log_file, .dies_with_parent = dies_with_parent});
  EXPECT_OK(child);
  return child.ok() ? *std::move(child) : nullptr;
}

Ending EndOf(ChildProcess& child) {
  const std::optional<Ending> ending = child.Wait(absl::Now() + kPatience);
  EXPECT_TRUE(ending.has_value()) << "the child does not end";
  return ending.value_or(Ending{.status = -1});
}

// What a child prints.
std::string OutputOf(const std::string& script) {
  const TemporaryFolder folder;
  EXPECT_TRUE(EndOf(*Shell(script, folder / "log")).well());
  return folder.Read("log");
}

TEST(Process, TellsHowAChildEnded) {
  EXPECT_TRUE(EndOf(*Shell("exit 0")).well());
  const Ending failed = EndOf(*Shell("exit 3"));
  EXPECT_FALSE(failed.well());
  EXPECT_EQ(failed.Describe(), "exited with status 3");
  const Ending killed = EndOf(*Shell("kill -9 $$"));
  EXPECT_FALSE(killed.well());
  EXPECT_EQ(killed.Describe(), "was killed by signal 9 (Killed)");
}

TEST(Process, AProgramThatCannotBeStartedIsNamed) {
  const absl::Status status = ChildProcess::Start({.arguments = {"/no/such/program"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot start /no/such/program"));
  EXPECT_FALSE(ChildProcess::Start({}).ok());
  const absl::Status log = ChildProcess::Start({.arguments = {"/bin/true"}, .log_file = "/no/such/log"}).status();
  EXPECT_THAT(std::string(log.message()), HasSubstr("cannot write /no/such/log"));
}

TEST(Process, OutputAndErrorsAreAppendedToTheLog) {
  const TemporaryFolder folder;
  folder.Write("log", "before\n");
  EXPECT_TRUE(EndOf(*Shell("echo out; echo error >&2", folder / "log")).well());
  EXPECT_EQ(folder.Read("log"), "before\nout\nerror\n");
}

TEST(Process, WaitEndsAtItsDeadlineAndMayBeAskedAgain) {
  const std::unique_ptr<ChildProcess> child = Shell("exec sleep 60");
  EXPECT_FALSE(child->Wait(absl::InfinitePast()).has_value());
  EXPECT_FALSE(child->Wait(absl::Now() + absl::Milliseconds(20)).has_value());
  EXPECT_TRUE(child->running());
  child->Signal(SIGTERM);
  EXPECT_EQ(EndOf(*child).signal, SIGTERM);
  EXPECT_EQ(EndOf(*child).signal, SIGTERM);
  EXPECT_FALSE(child->running());
  child->Signal(SIGTERM);  // nobody there: nothing happens
}

TEST(Process, DescriptorBecomesReadableAtTheEnd) {
  const std::unique_ptr<ChildProcess> child = Shell("exec sleep 60");
  pollfd ended = {.fd = child->descriptor(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&ended, 1, 0), 0);
  child->Signal(SIGKILL);
  EXPECT_EQ(poll(&ended, 1, 30000), 1);
}

TEST(Process, ManyThreadsMayWait) {
  const std::unique_ptr<ChildProcess> child = Shell("exit 5");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { EXPECT_EQ(EndOf(*child).status, 5); });
  for (std::thread& thread : threads) thread.join();
}

TEST(Process, AChildIsAProcessGroupOfItsOwn) {
  const std::unique_ptr<ChildProcess> child = Shell("exec sleep 60");
  EXPECT_EQ(getpgid(child->pid()), child->pid());
  EXPECT_EQ(getsid(child->pid()), getsid(0));
}

TEST(Process, AChildHasNothingOfTheParentsButItsOutput) {
  // A descriptor that would be inherited, a blocked signal and one that is ignored.
  const int left_open = fcntl(STDIN_FILENO, F_DUPFD, 100);
  ASSERT_GE(left_open, 100);
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const sighandler_t handler = signal(SIGPIPE, SIG_IGN);
  const std::string output = OutputOf(
      "i=10; while [ $i -lt 300 ]; do [ -e /proc/$$/fd/$i ] && echo $i; i=$((i + 1)); done; "
      "readlink /proc/$$/fd/0; grep -E 'Sig(Blk|Ign)' /proc/$$/status | tr -d '\\t'");
  signal(SIGPIPE, handler);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  close(left_open);
  EXPECT_EQ(output, "/dev/null\nSigBlk:0000000000000000\nSigIgn:0000000000000000\n");
}

TEST(Process, ItsObjectTakesTheChildWithIt) {
  std::unique_ptr<ChildProcess> child = Shell("trap '' TERM; exec sleep 60");
  const pid_t pid = child->pid();
  child.reset();
  EXPECT_EQ(kill(pid, 0), -1) << "the child is still there";
}

TEST(Process, DiesWithTheThreadThatStartedIt) {
  std::unique_ptr<ChildProcess> child;
  std::thread([&child] { child = Shell("exec sleep 60"); }).join();
  EXPECT_EQ(EndOf(*child).signal, SIGTERM);
}

TEST(Process, OutlivesItsObjectIfAskedTo) {
  const TemporaryFolder folder;
  // It waits for someone to open the pipe, so that it cannot end before its object has gone.
  std::unique_ptr<ChildProcess> child =
      Shell(absl::StrCat("mkfifo ", folder / "pipe", "; echo ready; read word < ", folder / "pipe", "; exit $word"),
            folder / "log", /*dies_with_parent=*/false);
  const pid_t pid = child->pid();
  EXPECT_EQ(getsid(pid), pid);
  child.reset();
  EXPECT_EQ(kill(pid, 0), 0) << "the child went with its object";
  const absl::Time deadline = absl::Now() + kPatience;
  while (folder.Read("log") != "ready\n" && absl::Now() < deadline) std::this_thread::yield();
  std::ofstream(folder / "pipe") << "7\n";
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(Process, StartsWhereItIsToldTo) {
  const TemporaryFolder folder;
  auto child = ChildProcess::Start({.arguments = {"/bin/pwd"}, .log_file = folder / "log", .directory = folder.path()});
  ASSERT_OK(child);
  EXPECT_TRUE(EndOf(**child).well());
  EXPECT_EQ(folder.Read("log"), folder.path() + "\n");
  child = ChildProcess::Start({.arguments = {"/bin/pwd"}, .directory = folder / "nowhere"});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound) << child.status();
}

TEST(Process, WritesAndHoldsNoMoreThanItMay) {
  const TemporaryFolder folder;
  auto child = ChildProcess::Start({.arguments = {"/bin/sh", "-c", "ulimit -v; head -c 5000 /dev/zero > big"},
                                    .log_file = folder / "log",
                                    .directory = folder.path(),
                                    .max_memory = uint64_t{1} << 30,
                                    .max_written = 1000});
  ASSERT_OK(child);
  EXPECT_FALSE(EndOf(**child).well());
  EXPECT_EQ(folder.Read("log").substr(0, 8), "1048576\n");  // KiB
  EXPECT_EQ(folder.Read("big").size(), 1000u);
}

TEST(Process, KillsWhatItsChildStarted) {
  const TemporaryFolder folder;
  // What holds the pipe open for writing is the grandchild alone, once the child is in `exec`.
  std::unique_ptr<ChildProcess> child =
      Shell(absl::StrCat("mkfifo ", folder / "pipe", "; sleep 600 > ", folder / "pipe", " & echo ready; exec sleep 600"),
            folder / "log");
  const absl::Time deadline = absl::Now() + kPatience;
  while (folder.Read("log") != "ready\n" && absl::Now() < deadline) std::this_thread::yield();
  std::ifstream pipe(folder / "pipe");
  EXPECT_EQ(child->KillGroup().signal, SIGKILL);
  EXPECT_EQ(pipe.get(), EOF);  // comes when nobody can write any more
  EXPECT_EQ(child->KillGroup().signal, SIGKILL);
}

TEST(Process, OwnProgramIsThisTest) {
  const absl::StatusOr<std::string> program = OwnProgram();
  ASSERT_OK(program);
  EXPECT_THAT(*program, ::testing::EndsWith("common_test"));
}

}  // namespace
}  // namespace millrace
