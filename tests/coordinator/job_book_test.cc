#include "coordinator/job_book.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JobBookTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    Open();
  }
  void TearDown() override {
    Close();
    std::filesystem::remove_all(directory_);
  }
  // As a coordinator that is started, and one that is killed.
  void Open() {
    auto store = JobStore::Open(Path());
    ASSERT_OK(store);
    store_ = *std::move(store);
    auto book = JobBook::Open(store_.get());
    ASSERT_OK(book);
    book_ = *std::move(book);
  }
  void Close() {
    book_.reset();
    store_.reset();
  }
  std::string Path() const { return directory_ / "coordinator.sqlite"; }

  static StoredJob Named(const std::string& name) {
    StoredJob job;
    job.job.mutable_spec()->set_name(name);
    job.base_directory = "/data";
    job.job_yaml = "name: " + name;
    return job;
  }
  static v1::JobEvent Step(uint64_t step, const std::string& phase = "p") {
    v1::JobEvent event;
    event.mutable_step()->set_phase(phase);
    event.mutable_step()->set_step(step);
    return event;
  }
  std::vector<uint64_t> Steps(const std::string& id) {
    std::vector<uint64_t> steps;
    uint64_t after = 0;
    for (;;) {
      const auto events = book_->Read(id, after, 3);
      EXPECT_OK(events);
      if (!events.ok() || events->empty()) return steps;
      for (const v1::JobEvent& event : *events) {
        EXPECT_GT(event.sequence(), after);
        after = event.sequence();
        if (event.has_step()) steps.push_back(event.step().step());
      }
    }
  }

  std::filesystem::path directory_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<JobBook> book_;
};

TEST_F(JobBookTest, NamesAreMadeUnique) {
  EXPECT_EQ(book_->Add(Named("kjv"))->id(), "kjv");
  EXPECT_EQ(book_->Add(Named("kjv"))->id(), "kjv-2");
  EXPECT_EQ(book_->Add(Named("kjv-2"))->id(), "kjv-2-2");
  EXPECT_EQ(book_->Add(Named("kjv"))->id(), "kjv-3");
}

TEST_F(JobBookTest, FirstComeFirstServedAndWhatRanBeforeARestartGoesOnFirst) {
  ASSERT_OK(book_->Add(Named("a")));
  ASSERT_OK(book_->Add(Named("b")));
  ASSERT_OK(book_->Add(Named("c")));
  EXPECT_EQ(book_->Next(), "a");
  ASSERT_OK(book_->SetState("a", v1::Job::PAUSED, [](v1::Job*) {}));
  EXPECT_EQ(book_->Next(), "b");
  ASSERT_OK(book_->Requeue("a"));
  EXPECT_EQ(book_->Next(), "b");
  ASSERT_OK(book_->SetState("c", v1::Job::RUNNING, [](v1::Job*) {}));
  Close();
  Open();
  EXPECT_EQ(book_->Next(), "c");
  ASSERT_OK(book_->SetState("c", v1::Job::SUCCEEDED, [](v1::Job*) {}));
  EXPECT_EQ(book_->Next(), "b");
  ASSERT_OK(book_->SetState("b", v1::Job::CANCELLED, [](v1::Job*) {}));
  EXPECT_EQ(book_->Next(), "a");
  std::vector<std::string> ids;
  for (const v1::Job& job : book_->List()) ids.push_back(job.id());
  EXPECT_THAT(ids, ElementsAre("b", "c", "a"));
}

TEST_F(JobBookTest, EveryEndOfAJobCountsOnce) {
  const auto set = [this](const char* id, v1::Job::State state) {
    EXPECT_OK(book_->SetState(id, state, [](v1::Job*) {}));
  };
  for (const char* name : {"a", "b", "c"}) ASSERT_OK(book_->Add(Named(name)));
  EXPECT_THAT(book_->Endings(), ::testing::IsEmpty());
  set("a", v1::Job::RUNNING);
  set("a", v1::Job::FAILED);
  ASSERT_OK(book_->Requeue("a"));
  set("a", v1::Job::RUNNING);
  set("a", v1::Job::FAILED);
  set("b", v1::Job::CANCELLED);  // while it waits
  set("c", v1::Job::PAUSED);
  set("c", v1::Job::CANCELLED);
  set("c", v1::Job::CANCELLED);
  using Endings = std::map<v1::Job::State, uint64_t>;
  EXPECT_EQ(book_->Endings(), (Endings{{v1::Job::FAILED, 2}, {v1::Job::CANCELLED, 2}}));
  // Of this process, as counters are.
  Close();
  Open();
  EXPECT_THAT(book_->Endings(), ::testing::IsEmpty());
}

TEST_F(JobBookTest, AKilledCoordinatorKnowsItsJobsAndFlushedEvents) {
  ASSERT_OK(book_->Add(Named("a")));
  ASSERT_OK(book_->SetState("a", v1::Job::FAILED, [](v1::Job* job) { job->set_error("no space"); }));
  book_->Append("a", Step(1));
  book_->Update("a", [](v1::Job* job) { job->set_step(1); });
  ASSERT_OK(book_->Flush());
  book_->Append("a", Step(2));  // not flushed: lost
  Close();
  Open();
  const auto job = book_->GetStored("a");
  ASSERT_OK(job);
  EXPECT_EQ(job->job.state(), v1::Job::FAILED);
  EXPECT_EQ(job->job.error(), "no space");
  EXPECT_EQ(job->job.step(), 1u);
  EXPECT_EQ(job->base_directory, "/data");
  EXPECT_EQ(job->job_yaml, "name: a");
  EXPECT_THAT(Steps("a"), ElementsAre(1));
}

TEST_F(JobBookTest, SequencesThatWatchersMayHaveSeenAreNotUsedAgain) {
  ASSERT_OK(book_->Add(Named("a")));
  ASSERT_OK(book_->Flush());
  book_->Append("a", Step(1));
  const uint64_t seen = book_->Read("a", 0, 100)->back().sequence();
  Close();
  Open();
  book_->Append("a", Step(1));
  EXPECT_GT(book_->Read("a", 0, 100)->back().sequence(), seen);
}

TEST_F(JobBookTest, SupersededStepsAreForgottenFlushedOrNot) {
  ASSERT_OK(book_->Add(Named("a")));
  for (uint64_t step = 1; step <= 5; ++step) book_->Append("a", Step(step));
  book_->Append("a", Step(5, "earlier"));
  ASSERT_OK(book_->Flush());
  for (uint64_t step = 6; step <= 9; ++step) book_->Append("a", Step(step));
  ASSERT_OK(book_->Supersede("a", "p", 3));
  EXPECT_THAT(Steps("a"), ElementsAre(1, 2, 3, 5));
  for (uint64_t step = 4; step <= 5; ++step) book_->Append("a", Step(step));
  EXPECT_THAT(Steps("a"), ElementsAre(1, 2, 3, 5, 4, 5));
}

TEST_F(JobBookTest, AReaderSeesEveryEventOnceWhileTheyAreFlushed) {
  ASSERT_OK(book_->Add(Named("a")));
  constexpr uint64_t kEvents = 2000;
  std::thread writer([&] {
    for (uint64_t step = 1; step <= kEvents; ++step) {
      book_->Append("a", Step(step));
      if (step % 100 == 0) {
        EXPECT_OK(book_->Flush());
      }
    }
  });
  uint64_t after = 0, next = 1;
  while (next <= kEvents) {
    book_->AwaitEvent("a", after, absl::InfiniteFuture());
    const auto events = book_->Read("a", after, 100);
    ASSERT_OK(events);
    for (const v1::JobEvent& event : *events) {
      ASSERT_EQ(event.sequence(), after + 1);
      after = event.sequence();
      if (event.has_step()) {
        ASSERT_EQ(event.step().step(), next++);
      }
    }
  }
  writer.join();
}

TEST_F(JobBookTest, ADeletedJobIsGoneAndUnknownOnesAreNamed) {
  ASSERT_OK(book_->Add(Named("a")));
  ASSERT_OK(book_->Add(Named("b")));
  ASSERT_OK(book_->Delete("a"));
  EXPECT_EQ(book_->Get("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(book_->Get("a").status().message(), HasSubstr("there are: b"));
  Close();
  Open();
  EXPECT_EQ(book_->List().size(), 1u);
  EXPECT_EQ(book_->Read("a", 0, 10).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobBookTest, EpochsOnlyRise) {
  EXPECT_EQ(*store_->NextEpoch(), 1u);
  EXPECT_EQ(*store_->NextEpoch(10), 10u);
  Close();
  Open();
  EXPECT_EQ(*store_->NextEpoch(5), 11u);
}

TEST_F(JobBookTest, ASecondCoordinatorOnTheSameDirectoryIsRefused) {
  const auto second = JobStore::Open(Path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << second.status();
}

TEST_F(JobBookTest, ADamagedFileIsRefusedWithItsName) {
  Close();
  {
    std::FILE* file = std::fopen(Path().c_str(), "wb");
    std::fputs(std::string(10000, 'x').c_str(), file);
    std::fclose(file);
  }
  const auto opened = JobStore::Open(Path());
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(opened.status().message(), HasSubstr("coordinator.sqlite"));
  std::filesystem::remove_all(directory_);
  std::filesystem::create_directories(directory_);
  Open();
}

}  // namespace
}  // namespace millrace::coordinator
