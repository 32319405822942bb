#include "evaluation/programs.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::evaluation {
namespace {

using ::testing::HasSubstr;

TrialOutcome Try(const std::string& script, const std::string& source = "", double seconds = 30) {
  Trial trial;
  trial.arguments = {"/bin/sh", "-c", script};
  trial.file = "answer.txt";
  trial.source = source;
  trial.time_limit = absl::Seconds(seconds);
  trial.max_memory = uint64_t{1} << 30;
  const auto outcome = RunTrial(trial);
  EXPECT_OK(outcome);
  return outcome.value_or(TrialOutcome());
}

TEST(Programs, PassIfTheyEndWell) {
  const TrialOutcome passed = Try("cat answer.txt; ls", "what was generated\n");
  EXPECT_TRUE(passed.passed);
  EXPECT_EQ(passed.output, "what was generated\nanswer.txt\n");
  const TrialOutcome failed = Try("echo no >&2; exit 3");
  EXPECT_FALSE(failed.passed);
  EXPECT_EQ(failed.ending, "exited with status 3");
  EXPECT_EQ(failed.output, "no\n");
}

TEST(Programs, AreKilledAtTheirTimeWithWhatTheyStarted) {
  const TrialOutcome late = Try("sleep 600 & sleep 600", "", 0.1);
  EXPECT_FALSE(late.passed);
  EXPECT_EQ(late.ending, "was killed after 0.1 s");
}

TEST(Programs, WhatStaysBehindIsKilled) {
  const text::TemporaryFolder folder;
  EXPECT_TRUE(Try("sleep 600 & echo $! > " + folder / "pid").passed);
  std::string pid = folder.Read("pid");
  pid.pop_back();
  // It may take a moment to die, and then be a zombie: that has no command line.
  const auto command = [&pid] {
    std::ifstream stream("/proc/" + pid + "/cmdline");
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!command().empty() && absl::Now() < deadline) std::this_thread::yield();
  EXPECT_EQ(command(), "");
}

TEST(Programs, HaveLimitsOfMemoryAndOutput) {
  EXPECT_EQ(Try("ulimit -v").output, "1048576\n");
  const TrialOutcome loud = Try("yes", "", 60);
  EXPECT_FALSE(loud.passed);
  EXPECT_EQ(loud.output.size(), 4096u);
}

TEST(Programs, LeaveNothingBehind) {
  const text::TemporaryFolder folder;
  const char* const before = getenv("TMPDIR");
  const std::string kept = before == nullptr ? "" : before;
  setenv("TMPDIR", folder.path().c_str(), 1);
  EXPECT_THAT(Try("pwd; mkdir deep; touch deep/file").output, HasSubstr(folder.path()));
  before == nullptr ? unsetenv("TMPDIR") : setenv("TMPDIR", kept.c_str(), 1);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Programs, ThatAreNotThereAreAnError) {
  Trial trial;
  trial.arguments = {"/nowhere/checker"};
  trial.file = "answer.txt";
  trial.time_limit = absl::Seconds(30);
  EXPECT_THAT(std::string(RunTrial(trial).status().message()), HasSubstr("/nowhere/checker"));
}

}  // namespace
}  // namespace millrace::evaluation
