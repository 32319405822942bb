// How fast the dashboard is with many jobs and points: a real coordinator over a store of jobs that have been trained,
// and a real browser. Prints a table.
//   millrace_dashboard_bench MILLRACE [JOBS [STEPS]]
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "bench/processes.h"
#include "common/job_file.h"
#include "common/status.h"
#include "coordinator/job_store.h"
#include "gtest/gtest.h"
#include "testing/browser.h"

namespace millrace::bench {
namespace {

using testing::Browser;

constexpr uint64_t kEvaluated = 100;  // every so many steps
constexpr absl::Duration kWatched = absl::Seconds(10);

constexpr char kJob[] = R"(name: trained
labels: {team: search}
tokenizer: {path: t}
model: {family: llama, layers: 4, hidden_size: 128, heads: 4, context: 128}
phases:
  - name: pretrain
    data: {sources: [{path: a.txt}]}
    global_batch: 8
    optimizer: {lr: 1.0e-3}
    evaluate: {every_steps: 100}
    stop: {max_steps: 1000000}
)";

// Curves as training draws them: falling, with noise that is a function of job and step.
double LossOf(int job, uint64_t step) {
  const double noise = std::sin(static_cast<double>(step * step % 7919 + 31 * static_cast<uint64_t>(job)));
  return 2 + 0.02 * job + 6 / (1 + 0.01 * static_cast<double>(step)) + 0.1 * noise;
}

std::vector<v1::JobEvent> EventsOf(const std::string& id, int job, uint64_t steps, int64_t begun_ms) {
  std::vector<v1::JobEvent> events;
  const auto add = [&](uint64_t step) -> v1::JobEvent& {
    v1::JobEvent& event = events.emplace_back();
    event.set_sequence(events.size());
    event.set_job_id(id);
    event.set_unix_ms(begun_ms + static_cast<int64_t>(250 * step));
    return event;
  };
  for (uint64_t step = 1; step <= steps; ++step) {
    v1::StepEvent& about = *add(step).mutable_step();
    about.set_phase("pretrain");
    about.set_step(step);
    about.set_max_steps(steps);
    about.set_loss(LossOf(job, step));
    about.set_learning_rate(1e-3 / (1 + 1e-4 * static_cast<double>(step)));
    about.set_gradient_norm(1 + 0.3 * LossOf(job + 1, step));
    about.set_tokens(1024 * step);
    about.set_tokens_per_second(4000 + 100 * LossOf(job, step));
    about.set_eta_seconds(0.25 * static_cast<double>(steps - step));
    about.set_workers(4);
    about.set_seconds_training(0.25 * static_cast<double>(step));
    if (step % kEvaluated != 0) continue;
    v1::EvaluationEvent& evaluation = *add(step).mutable_evaluation();
    evaluation.set_phase("pretrain");
    evaluation.set_step(step);
    evaluation.set_loss(0.1 + LossOf(job, step));
    evaluation.set_perplexity(std::exp(evaluation.loss()));
    evaluation.set_bits_per_byte(1.5);
    evaluation.set_best(true);
  }
  return events;
}

absl::Status FillStore(const std::string& path, int jobs, uint64_t steps) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<coordinator::JobStore> store, coordinator::JobStore::Open(path));
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec spec, ParseJob(kJob, "trained.yaml", {}));
  const int64_t now = absl::ToUnixMillis(absl::Now());
  for (int i = 0; i < jobs; ++i) {
    coordinator::StoredJob job;
    *job.job.mutable_spec() = spec;
    job.job.set_state(v1::Job::SUCCEEDED);
    job.job.set_stop_reason("max_steps");
    job.job.set_phase("pretrain");
    job.job.set_step(steps);
    job.job.set_max_steps(steps);
    job.job.set_train_loss(LossOf(i, steps));
    job.job.set_held_out_loss(0.1 + LossOf(i, steps));
    job.job.set_submitted_unix_ms(now - 1000 * (jobs - i));
    job.job.set_user("ann");
    MILLRACE_ASSIGN_OR_RETURN(const coordinator::StoredJob inserted, store->Insert(job));
    MILLRACE_RETURN_IF_ERROR(store->AppendEvents(
        inserted.job, EventsOf(inserted.job.id(), i, steps, now - 250 * static_cast<int64_t>(steps))));
  }
  return absl::OkStatus();
}

// Seconds that the process has computed.
double CpuSeconds(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string field;
  double ticks = 0;
  for (int i = 1; i <= 15 && file >> field; ++i) {
    int64_t number = 0;
    if (i >= 14 && absl::SimpleAtoi(field, &number)) ticks += static_cast<double>(number);
  }
  return ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

class Table {
 public:
  Table(Browser* browser, pid_t coordinator) : browser_(browser), coordinator_(coordinator) {
    std::printf("| what | seconds | data | coordinator's CPU | its peak memory |\n|---|---|---|---|---|\n");
  }

  // Opens `address`, which changes the page's place only if `tab` shows the page already, and waits for a painted frame
  // in which `condition` holds.
  void Opens(const std::string& what, const std::string& address, const std::string& condition) {
    tab_ = browser_->NewTab(testing::kDesktop);
    const double cpu = CpuSeconds(coordinator_);
    tab_->Load(address);
    Print(what, AwaitPainted(condition), cpu);
  }
  // Measures what the page does by itself.
  void Watches(const std::string& what, absl::Duration time) {
    const double cpu = CpuSeconds(coordinator_), bytes = Bytes();
    tab_->Evaluate(
        absl::StrCat("new Promise((resolve) => setTimeout(resolve, ", absl::ToInt64Milliseconds(time), "))"));
    const double seconds = absl::ToDoubleSeconds(time);
    std::printf("| %s | a second | %.1f kB | %.1f %% | %.0f MB |\n", what.c_str(), (Bytes() - bytes) / 1000 / seconds,
                100 * (CpuSeconds(coordinator_) - cpu) / seconds, PeakMegabytes(coordinator_));
    std::fflush(stdout);
  }

 private:
  // Seconds from the navigation to the frame.
  double AwaitPainted(const std::string& condition) {
    return tab_->Evaluate(
        absl::StrCat("new Promise((resolve) => { const look = () => { if (", condition,
                     ") requestAnimationFrame(() => setTimeout(() => resolve(performance.now() / 1000)"
                     ")); else setTimeout(look, 5); }; look(); })"));
  }
  // That came over the network.
  double Bytes() const {
    return tab_->Evaluate(
        "performance.getEntriesByType('resource').reduce((sum, {transferSize}) => sum + transferSize, "
        "performance.getEntriesByType('navigation')[0].transferSize)");
  }
  void Print(const std::string& what, double seconds, double cpu) {
    std::printf("| %s | %.2f | %.2f MB | %.2f s | %.0f MB |\n", what.c_str(), seconds, Bytes() / 1e6,
                CpuSeconds(coordinator_) - cpu, PeakMegabytes(coordinator_));
    std::fflush(stdout);
  }

  Browser* const browser_;
  const pid_t coordinator_;
  std::unique_ptr<Browser::Tab> tab_;
};

absl::Status Measure(const std::string& millrace, int jobs, uint64_t steps) {
  const TemporaryFolder folder;
  MILLRACE_RETURN_IF_ERROR(FillStore(absl::StrCat(folder.path(), "/coordinator.sqlite"), jobs, steps));
  const std::string address = absl::StrCat("127.", getpid() % 251 + 1, ".", getpid() / 251 % 251 + 1, ".1:8080");
  MILLRACE_ASSIGN_OR_RETURN(const Role coordinator,
                            StartRole({millrace, "coordinator", "--dir", folder.path(), "--http", address},
                                      "coordinator", folder.path(), /*serves=*/true));
  const std::string page = absl::StrCat("http://", address, "/");
  std::vector<std::string> ids;
  for (int i = 0; i < jobs; ++i) ids.push_back(i == 0 ? "trained" : absl::StrCat("trained-", i + 1));
  const auto curves = [](const char* chart, int count) {
    return absl::StrCat("document.querySelectorAll('#", chart, " .entry').length === ", count);
  };
  const int shown = std::min(jobs, 100);
  Browser browser;
  Table table(&browser, coordinator.process->pid());
  table.Opens(absl::StrCat("the list of ", jobs, " jobs"), page,
              absl::StrCat("document.querySelectorAll('#jobs-table tbody tr').length === ", shown));
  table.Opens("a job's page: curves and events", page + "#/job/" + ids[0],
              curves("job-chart", 2) + " && document.querySelectorAll('#events li').length > 0");
  const std::vector<std::string> drawn(ids.end() - shown, ids.end());
  const std::string all = absl::StrCat(page, "#/jobs/", absl::StrJoin(drawn, ","));
  table.Opens(absl::StrCat("curves of ", shown, " jobs over each other, the first time"), all,
              curves("compare-chart", 2 * shown));
  table.Opens("the same again", all, curves("compare-chart", 2 * shown));
  table.Watches("the same, left open", kWatched);
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  int jobs = 100;
  uint64_t steps = 10'000;
  if (argc < 2 || argc > 4 || (argc > 2 && (!absl::SimpleAtoi(argv[2], &jobs) || jobs < 1)) ||
      (argc > 3 && (!absl::SimpleAtoi(argv[3], &steps) || steps < 100))) {
    std::fprintf(stderr, "usage: millrace_dashboard_bench MILLRACE [JOBS [STEPS]]\n");
    return 2;
  }
  const absl::Status measured = millrace::bench::Measure(argv[1], jobs, steps);
  if (!measured.ok()) std::fprintf(stderr, "%s\n", measured.ToString().c_str());
  return measured.ok() ? 0 : 1;
}
