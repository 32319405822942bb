// What travels between workers and shards for each parameter and step, and what coarser numbers cost in quality: the
// Shakespeare job, cut short, with 16 bits a gradient and a weight against 32.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "bench/groups.h"
#include "bench/processes.h"
#include "client/coordinator_client.h"
#include "common/job_file.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

constexpr char kJob[] = "examples/shakespeare-char.yaml";
constexpr uint64_t kSteps = 1000;
constexpr double kMostUp = 2.5, kMostDown = 2, kMostLoss = 1.005;

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// A port that nobody listens at.
int FreePort() {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  bind(descriptor, reinterpret_cast<const sockaddr*>(&address), size);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  close(descriptor);
  return ntohs(address.sin_port);
}

// What the Prometheus endpoint at `port` shows.
std::string Scrape(int port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Loopback(port);
  std::string answer;
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  if (connect(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
      send(descriptor, request.data(), request.size(), 0) == static_cast<ssize_t>(request.size())) {
    char bytes[4096];
    for (ssize_t got; (got = recv(descriptor, bytes, sizeof(bytes), 0)) > 0;) {
      answer.append(bytes, static_cast<size_t>(got));
    }
  }
  close(descriptor);
  return answer;
}

// The value of a metric, written as it stands there; 0 if there is none.
double ValueOf(const std::string& metrics, const std::string& name) {
  for (absl::string_view line : absl::StrSplit(metrics, '\n')) {
    double value = 0;
    if (absl::ConsumePrefix(&line, name + " ") && absl::SimpleAtod(line, &value)) return value;
  }
  return 0;
}

double Moved(const std::string& what, const std::string& rpc, const std::string& metrics) {
  return ValueOf(metrics, absl::StrCat("millrace_shard_", what, "_total{rpc=\"", rpc, "\"}"));
}

struct Trained {
  double up = 0, down = 0;  // bytes a parameter and step
  double loss = 0;          // held out, nats a character
};

// The job on 1 shard and 1 worker that has half the cores.
absl::StatusOr<Trained> TrainAt(int bits, const Machine& machine) {
  MILLRACE_ASSIGN_OR_RETURN(v1::JobSpec job, ReadJobFile(kJob, {absl::StrCat("phases.0.optimizer.gradient_bits=", bits),
                                                                absl::StrCat("phases.0.optimizer.weight_bits=", bits),
                                                                absl::StrCat("phases.0.stop.max_steps=", kSteps),
                                                                absl::StrCat("phases.0.evaluate.every_steps=", kSteps),
                                                                // One unit a step.
                                                                "phases.0.microbatch=12"}));
  const TemporaryFolder folder;
  const std::string& directory = folder.path();
  MILLRACE_ASSIGN_OR_RETURN(const Role coordinator, StartRole({machine.program, "coordinator", "--dir", directory},
                                                              "coordinator", directory, true));
  const int port = FreePort();
  MILLRACE_ASSIGN_OR_RETURN(const Role shard, StartRole({machine.program, "ps", "--coordinator", coordinator.address,
                                                         "--metrics", absl::StrCat("127.0.0.1:", port)},
                                                        "shard", directory, true));
  MILLRACE_ASSIGN_OR_RETURN(const Role worker,
                            StartRole({machine.program, "worker", "--coordinator", coordinator.address, "--threads",
                                       absl::StrCat(std::max(1, machine.threads / 2))},
                                      "worker", directory, false));
  client::CoordinatorClient client(coordinator.address);
  v1::SubmitJobRequest request;
  *request.mutable_spec() = job;
  request.set_base_directory(std::filesystem::absolute(kJob).parent_path().string());
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job submitted, client.SubmitJob(request));
  Trained trained;
  std::string before;
  MILLRACE_RETURN_IF_ERROR(client.WatchJob(submitted.id(), 0, [&](const v1::JobEvent& event) {
    // The first steps come in 64 bits.
    if (event.has_step() && before.empty() && event.step().step() >= 3) before = Scrape(port);
    if (event.has_evaluation()) trained.loss = event.evaluation().loss();
    return !event.has_evaluation() || event.evaluation().step() < kSteps;
  }));
  const std::string after = Scrape(port);
  // Loading brings every block once, 4 bytes a parameter.
  const double loaded = Moved("bytes", "load", after) / Moved("blocks", "load", after);
  const auto bytes = [&](const char* rpc, const std::string& since) {
    const auto moved = [&](const char* what) { return Moved(what, rpc, after) - Moved(what, rpc, since); };
    return 4 * moved("bytes") / moved("blocks") / loaded;
  };
  trained.up = bytes("push", before);
  // From the beginning: in whole pulls, where `before` may be within one, whose blocks are not of one size.
  trained.down = bytes("pull", /*since=*/"");
  return trained;
}

}  // namespace

absl::Status BenchBytes(const Machine& machine, Report* report) {
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, ReadJobFile(kJob, {}));
  const std::filesystem::path text = std::filesystem::path(kJob).parent_path() / job.data().sources(0).path();
  if (!std::filesystem::exists(text)) {
    report->Absent("bytes", absl::StrCat("there is no ", text.string()));
    return absl::OkStatus();
  }
  absl::StatusOr<Trained> in_32_bits;
  std::thread meanwhile([&] { in_32_bits = TrainAt(32, machine); });
  const absl::StatusOr<Trained> in_16_bits = TrainAt(16, machine);
  meanwhile.join();
  MILLRACE_ASSIGN_OR_RETURN(const Trained fine, in_32_bits);
  MILLRACE_ASSIGN_OR_RETURN(const Trained coarse, in_16_bits);
  report->Add({"bytes/up", coarse.up, "bytes", kMostUp, 1, Row::kAtMost});
  report->Add({"bytes/down", coarse.down, "bytes", kMostDown, 1, Row::kAtMost});
  report->Add({"bytes/held-out-loss", coarse.loss, "nats", fine.loss, kMostLoss, Row::kAtMost});
  return absl::OkStatus();
}

}  // namespace millrace::bench
