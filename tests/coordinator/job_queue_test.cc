#include "coordinator/job_queue.h"

#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::optional<double> Any(const v1::JobSpec&, uint64_t) { return 1; }

TEST(JobQueue, AKeyMakesOneJobForEachUser) {
  SimulatedJobs jobs(&Any);
  v1::SubmitJobRequest request = jobs.Request();
  request.set_idempotency_key("nightly");
  const auto first = jobs.queue().Submit(request, "ann");
  ASSERT_OK(first);
  EXPECT_EQ(first->user(), "ann");
  jobs.Restart();
  EXPECT_EQ(jobs.queue().Submit(request, "ann")->id(), first->id());
  EXPECT_EQ(jobs.queue().Submit(request, "bob")->id(), "mine-2");
  // Labels are no part of what the job does.
  (*request.mutable_labels())["team"] = "search";
  EXPECT_EQ(jobs.queue().Submit(request, "ann")->id(), first->id());
  request.add_overrides("seed=2");
  const auto other = jobs.queue().Submit(request, "ann");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(other.status().message(), HasSubstr("has made the job mine, which is another"));
  request.set_idempotency_key(std::string(129, 'k'));
  EXPECT_EQ(jobs.queue().Submit(request, "ann").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(jobs.book().List().size(), 2u);
}

TEST(JobQueue, ValidationAloneMakesNothing) {
  SimulatedJobs jobs(&Any);
  v1::SubmitJobRequest request = jobs.Request();
  request.set_validate_only(true);
  const auto checked = jobs.queue().Submit(request);
  ASSERT_OK(checked);
  EXPECT_EQ(checked->id(), "");
  EXPECT_EQ(checked->spec().phases(0).optimizer().schedule(), "cosine");  // a default
  request.add_overrides("model.heads=3");
  EXPECT_THAT(jobs.queue().Submit(request).status().message(), HasSubstr("heads (3) does not divide"));
  EXPECT_THAT(jobs.book().List(), IsEmpty());
}

TEST(JobQueue, AJobIsATemplateOfOthers) {
  SimulatedJobs jobs(&Any);
  v1::SubmitJobRequest request = jobs.Request();
  request.add_overrides("phases.0.stop.max_steps=100");
  ASSERT_OK(jobs.queue().Submit(request));
  v1::SubmitJobRequest like;
  like.set_template_job_id("mine");
  like.add_overrides("seed=7");
  const auto copy = jobs.queue().Submit(like);
  ASSERT_OK(copy);
  EXPECT_EQ(copy->id(), "mine-2");
  EXPECT_EQ(copy->spec().seed(), 7u);
  EXPECT_EQ(copy->spec().phases(0).stop().max_steps(), 100u);
  EXPECT_EQ(jobs.book().GetStored("mine-2")->base_directory, "/data");
  // What follows from a field follows from its new value.
  like.add_overrides("phases.0.stop.max_steps=300");
  EXPECT_EQ(jobs.queue().Submit(like)->spec().phases(0).optimizer().decay_steps(), 300u);
  // Also of a job that was submitted as a message.
  v1::SubmitJobRequest message;
  *message.mutable_spec() = copy->spec();
  message.mutable_spec()->set_name("message");
  ASSERT_OK(jobs.queue().Submit(message));
  like.Clear();
  like.set_template_job_id("message");
  like.add_overrides("name=next");
  EXPECT_EQ(jobs.queue().Submit(like)->id(), "next");
  like.set_template_job_id("none");
  EXPECT_EQ(jobs.queue().Submit(like).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(jobs.queue().Submit({}).status().message(), HasSubstr("the request holds no job"));
}

TEST(JobQueue, PriorityGoesBeforeOrder) {
  SimulatedJobs jobs(&Any);
  for (const char* name : {"a", "b", "c", "d"}) {
    v1::SubmitJobRequest request = jobs.Request();
    request.add_overrides(std::string("name=") + name);
    if (*name == 'c') request.add_overrides("priority=60");
    ASSERT_OK(jobs.queue().Submit(request));
  }
  const auto positions = [&] {
    std::vector<uint32_t> positions;
    for (const v1::Job& job : jobs.book().List()) {
      EXPECT_EQ(jobs.book().Get(job.id())->queue_position(), job.queue_position());
      positions.push_back(job.queue_position());
    }
    return positions;
  };
  EXPECT_THAT(positions(), ElementsAre(2, 3, 1, 4));
  EXPECT_EQ(jobs.book().Next(), "c");
  v1::UpdateJobRequest update;
  update.set_job_id("d");
  update.set_priority(99);
  ASSERT_OK(jobs.queue().Update(update));
  ASSERT_OK(jobs.queue().Pause("c"));
  EXPECT_THAT(positions(), ElementsAre(2, 3, 0, 1));
  jobs.Restart();
  EXPECT_EQ(jobs.book().Next(), "d");
  update.set_priority(101);
  EXPECT_THAT(jobs.queue().Update(update).status().message(), HasSubstr("priority: it must be at most 100"));
}

TEST(JobQueue, LabelsAreSetAndTakenAway) {
  SimulatedJobs jobs(&Any);
  ASSERT_OK(jobs.queue().Submit(jobs.Request()));
  v1::UpdateJobRequest update;
  update.set_job_id("mine");
  (*update.mutable_set_labels())["team"] = "search";
  (*update.mutable_set_labels())["run"] = "7";
  ASSERT_OK(jobs.queue().Update(update));
  update.clear_set_labels();
  update.add_remove_labels("run");
  ASSERT_OK(jobs.queue().Update(update));
  jobs.Restart();
  const auto job = jobs.book().Get("mine");
  ASSERT_EQ(job->spec().labels().size(), 1u);
  EXPECT_EQ(job->spec().labels().at("team"), "search");
  EXPECT_EQ(jobs.queue().Update(update).status().code(), absl::StatusCode::kNotFound);
  update.clear_remove_labels();
  (*update.mutable_set_labels())["../x"] = "";
  EXPECT_EQ(jobs.queue().Update(update).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(JobQueue, ACancelThatComesAsTheJobPausesIsNotLost) {
  SimulatedJobs jobs(&Any);
  JobQueue* asked = nullptr;
  JobQueue::Options options;
  options.directory = ::testing::TempDir();
  options.book = &jobs.book();
  options.run = [&asked](const StoredJob& job, const JobControl&) -> absl::StatusOr<JobOutcome> {
    // The run has come to its end, pausing, when somebody asks for more.
    EXPECT_OK(asked->Pause(job.job.id()));
    EXPECT_OK(asked->Cancel(job.job.id()));
    asked->Stop();
    return JobOutcome{JobOutcome::Kind::kPaused, ""};
  };
  JobQueue queue(std::move(options));
  asked = &queue;
  ASSERT_OK(queue.Submit(jobs.Request()));
  queue.Run();
  EXPECT_EQ(jobs.book().Get("mine")->state(), v1::Job::CANCELLED);
}

TEST(JobQueue, AUserHasSoManyUnfinishedJobs) {
  SimulatedJobs jobs(&Any, 2);
  ASSERT_OK(jobs.queue().Submit(jobs.Request(), "ann"));
  ASSERT_OK(jobs.queue().Submit(jobs.Request(), "ann"));
  const auto third = jobs.queue().Submit(jobs.Request(), "ann");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(third.status().message(), HasSubstr("ann has 2 unfinished jobs, of at most 2"));
  EXPECT_OK(jobs.queue().Submit(jobs.Request(), "bob"));
  ASSERT_OK(jobs.queue().Cancel("mine"));
  EXPECT_OK(jobs.queue().Submit(jobs.Request(), "ann"));
}

}  // namespace
}  // namespace millrace::coordinator
