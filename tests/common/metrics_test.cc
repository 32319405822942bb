#include "common/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/machine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// What a server at 127.0.0.1:PORT answers to a GET; empty if nobody answers.
std::string HttpGet(const std::string& address, const std::string& path) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) << address;
  const int socket_descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(socket_descriptor, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: ", address, "\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(send(socket_descriptor, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    char bytes[4096];
    for (ssize_t got; (got = recv(socket_descriptor, bytes, sizeof(bytes), 0)) > 0;) {
      answer.append(bytes, static_cast<size_t>(got));
    }
  }
  close(socket_descriptor);
  return answer;
}

TEST(Metrics, TextHasWhatWasCounted) {
  Metrics metrics;
  metrics.Counter("millrace_steps_total", "Optimizer steps applied.")->Increment(3);
  metrics.Gauge("millrace_members", "Living members.", {{"role", "worker"}})->Set(2);
  metrics.Gauge("millrace_members", "Living members.", {{"role", "shard"}})->Set(1);
  prometheus::Histogram* const time = metrics.Histogram("millrace_wait_seconds", "Waited.", {0.1, 1});
  time->Observe(0.05);
  time->Observe(0.5);
  time->Observe(5);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("# HELP millrace_steps_total Optimizer steps applied.\n"
                              "# TYPE millrace_steps_total counter\n"
                              "millrace_steps_total 3\n"));
  EXPECT_THAT(text, HasSubstr("millrace_members{role=\"worker\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("millrace_members{role=\"shard\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("millrace_wait_seconds_bucket{le=\"0.1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("millrace_wait_seconds_bucket{le=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("millrace_wait_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("millrace_wait_seconds_count 3\n"));
}

TEST(Metrics, AskingAgainGivesTheSameMetric) {
  Metrics metrics;
  prometheus::Counter* const counter = metrics.Counter("millrace_steps_total", "Steps.");
  EXPECT_EQ(metrics.Counter("millrace_steps_total", "Steps."), counter);
  EXPECT_NE(metrics.Counter("millrace_steps_total", "Steps.", {{"phase", "a"}}), counter);
}

TEST(Metrics, ResidentMemoryIsThereFromTheStart) {
  const std::string text = Metrics().Text();
  EXPECT_THAT(text, HasSubstr("# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes "));
  EXPECT_THAT(text, Not(HasSubstr("process_resident_memory_bytes 0\n")));
}

TEST(Metrics, OfTheProcessAndItsBuildAreThereFromTheStart) {
  const std::string text = Metrics().Text();
  EXPECT_THAT(text, HasSubstr(absl::StrCat("millrace_build_info{build=\"", BuildDescription(), "\"} 1\n")));
  EXPECT_THAT(text, HasSubstr("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "));
  for (const char* name :
       {"process_memory_limit_bytes", "process_available_memory_bytes", "process_start_time_seconds"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("# TYPE ", name, " gauge\n", name, " ")));
    EXPECT_THAT(text, Not(HasSubstr(absl::StrCat("\n", name, " 0\n"))));
  }
}

TEST(MetricGroup, GoesWithItsSeriesAndLeavesOthers) {
  Metrics metrics;
  metrics.Gauge("millrace_step", "Step.", {{"train_job", "b"}})->Set(7);
  {
    MetricGroup group(&metrics, {{"train_job", "a"}});
    group.Gauge("millrace_step", "Step.")->Set(3);
    group.Gauge("millrace_statistic", "Statistic.", {{"name", "kl"}})->Set(0.5);
    EXPECT_EQ(group.Gauge("millrace_step", "Step."), group.Gauge("millrace_step", "Step."));
    group.Counter("millrace_steps_total", "Steps.")->Increment(2);
    const std::string text = metrics.Text();
    EXPECT_THAT(text, HasSubstr("millrace_step{train_job=\"a\"} 3\n"));
    EXPECT_THAT(text, HasSubstr("millrace_statistic{name=\"kl\",train_job=\"a\"} 0.5\n"));
    EXPECT_THAT(text, HasSubstr("millrace_steps_total{train_job=\"a\"} 2\n"));
  }
  const std::string text = metrics.Text();
  EXPECT_THAT(text, Not(HasSubstr("train_job=\"a\"")));
  EXPECT_THAT(text, HasSubstr("millrace_step{train_job=\"b\"} 7\n"));
  // A group of the same labels starts anew.
  MetricGroup again(&metrics, {{"train_job", "a"}});
  EXPECT_EQ(again.Counter("millrace_steps_total", "Steps.")->Value(), 0);
}

TEST(Metrics, AreServedOverHttp) {
  Metrics metrics;
  prometheus::Counter* const counter = metrics.Counter("millrace_steps_total", "Steps.");
  ASSERT_OK(metrics.Serve("127.0.0.1:0"));
  ASSERT_THAT(metrics.address(), StartsWith("127.0.0.1:"));
  ASSERT_NE(metrics.address(), "127.0.0.1:0");
  counter->Increment(7);
  const std::string answer = HttpGet(metrics.address(), "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("millrace_steps_total 7\n"));
  EXPECT_THAT(answer, HasSubstr("process_resident_memory_bytes "));
  EXPECT_THAT(HttpGet(metrics.address(), "/other"), StartsWith("HTTP/1.1 404"));
}

TEST(Metrics, AreNotServedAtAnAddressThatIsTaken) {
  Metrics first, second;
  ASSERT_OK(first.Serve("127.0.0.1:0"));
  const absl::Status status = second.Serve(first.address());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(first.address()));
  EXPECT_EQ(second.address(), "");
  EXPECT_THAT(HttpGet(first.address(), "/metrics"), StartsWith("HTTP/1.1 200"));
}

TEST(Metrics, AreNotServedUnlessAsked) {
  Metrics metrics;
  EXPECT_OK(metrics.Serve(""));
  EXPECT_EQ(metrics.address(), "");
}

}  // namespace
}  // namespace millrace
