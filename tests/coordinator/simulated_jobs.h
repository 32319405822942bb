// A queue of jobs without a cluster: what trains them is a function of the job.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "coordinator/job_book.h"
#include "coordinator/job_queue.h"
#include "coordinator/job_store.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {

// A job of 40 steps, evaluated every 10.
inline constexpr char kSimulatedJob[] = R"(name: mine
tokenizer: {path: t}
model: {layers: 1, hidden_size: 8, heads: 1, context: 8}
phases:
  - name: p
    data: {sources: [{path: a.txt}]}
    global_batch: 1
    optimizer: {lr: 0.1}
    evaluate: {every_steps: 10}
    stop: {max_steps: 40}
)";

class SimulatedJobs {
 public:
  // The held-out loss of a job at a step; nothing: the job fails there.
  using Loss = std::function<std::optional<double>(const v1::JobSpec& job, uint64_t step)>;

  explicit SimulatedJobs(Loss loss, uint32_t jobs_per_user = 0)
      : loss_(std::move(loss)), jobs_per_user_(jobs_per_user) {
    directory_ =
        std::filesystem::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    Open();
  }
  ~SimulatedJobs() {
    StopRunning();
    queue_.reset();
    book_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  // As a coordinator that is killed and started again.
  void Restart() {
    StopRunning();
    queue_.reset();
    book_.reset();
    store_.reset();
    Open();
  }

  JobStore& store() { return *store_; }
  JobBook& book() { return *book_; }
  JobQueue& queue() { return *queue_; }

  // Trains what waits, on another thread, until StopRunning. `evaluated` is called by it after each evaluation.
  void Run(std::function<void()> evaluated = [] {}) {
    evaluated_ = std::move(evaluated);
    thread_ = std::thread([this] { queue_->Run(); });
  }
  void StopRunning() {
    if (!thread_.joinable()) return;
    queue_->Stop();
    thread_.join();
  }

  v1::SubmitJobRequest Request() const {
    v1::SubmitJobRequest request;
    request.set_job_yaml(kSimulatedJob);
    request.set_base_directory("/data");
    return request;
  }

 private:
  void Open() {
    auto store = JobStore::Open((directory_ / "coordinator.sqlite").string());
    ASSERT_OK(store);
    store_ = *std::move(store);
    auto book = JobBook::Open(store_.get());
    ASSERT_OK(book);
    book_ = *std::move(book);
    JobQueue::Options options;
    options.directory = directory_.string();
    options.book = book_.get();
    options.jobs_per_user = jobs_per_user_;
    options.run = [this](const StoredJob& job, const JobControl& control) { return Train(job.job, control); };
    options.forget = [](const std::string&) { return absl::OkStatus(); };
    options.wake = [] {};
    queue_ = std::make_unique<JobQueue>(std::move(options));
  }

  absl::StatusOr<JobOutcome> Train(const v1::Job& job, const JobControl& control) {
    const v1::PhaseSpec& phase = job.spec().phases(0);
    EXPECT_OK(book_->SetState(job.id(), v1::Job::RUNNING, [](v1::Job*) {}));
    for (uint64_t step = job.step() + 1; step <= phase.stop().max_steps(); ++step) {
      if (control.wish() != Wish::kNone) {
        const bool pauses = control.wish() == Wish::kPause;
        return JobOutcome{pauses                            ? JobOutcome::Kind::kPaused
                          : control.wish() == Wish::kCancel ? JobOutcome::Kind::kCancelled
                                                            : JobOutcome::Kind::kStopped,
                          ""};
      }
      v1::JobEvent event;
      event.mutable_step()->set_phase(phase.name());
      event.mutable_step()->set_step(step);
      event.mutable_step()->set_tokens(8 * step);
      event.mutable_step()->set_loss(1.0 / static_cast<double>(step));
      book_->Append(job.id(), event);
      book_->Update(job.id(), [&](v1::Job* entry) { entry->set_step(step); });
      if (step % phase.evaluate().every_steps() != 0) continue;
      const std::optional<double> loss = loss_(job.spec(), step);
      if (!loss.has_value()) return absl::InternalError("the loss is not finite");
      v1::JobEvent evaluated;
      evaluated.mutable_evaluation()->set_phase(phase.name());
      evaluated.mutable_evaluation()->set_step(step);
      evaluated.mutable_evaluation()->set_loss(*loss);
      book_->Append(job.id(), evaluated);
      book_->Update(job.id(), [&](v1::Job* entry) {
        if (entry->best_step() == 0 || *loss < entry->best_held_out_loss()) {
          entry->set_best_step(step);
          entry->set_best_held_out_loss(*loss);
        }
      });
      evaluated_();
    }
    return JobOutcome{JobOutcome::Kind::kSucceeded, "max_steps"};
  }

  const Loss loss_;
  const uint32_t jobs_per_user_;
  std::filesystem::path directory_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobBook> book_;
  std::unique_ptr<JobQueue> queue_;
  std::function<void()> evaluated_;
  std::thread thread_;
};

}  // namespace millrace::coordinator
