#include "coordinator/jobs_service.h"

#include "absl/strings/str_cat.h"
#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JobsServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 1; i <= 5; ++i) {
      v1::SubmitJobRequest request = jobs_.Request();
      request.add_overrides(absl::StrCat("name=job", i));
      (*request.mutable_labels())["parity"] = i % 2 == 0 ? "even" : "odd";
      ASSERT_TRUE(jobs_.queue().Submit(request, i < 3 ? "ann" : "bob").ok());
    }
  }
  JobsService::Parts Parts() {
    JobsService::Parts parts;
    parts.queue = &jobs_.queue();
    parts.book = &jobs_.book();
    parts.members = &members_;
    parts.wanted_shards = 2;
    return parts;
  }
  std::vector<std::string> List(const v1::ListJobsRequest& request) {
    reply_.Clear();
    const grpc::Status status = service_.ListJobs(nullptr, &request, &reply_);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<std::string> ids;
    for (const v1::Job& job : reply_.jobs()) ids.push_back(job.id());
    return ids;
  }

  SimulatedJobs jobs_{[](const v1::JobSpec&, uint64_t) { return 1.0; }};
  Members members_{Members::Options()};
  JobsService service_{Parts()};
  v1::ListJobsReply reply_;
};

TEST_F(JobsServiceTest, JobsAreListedByWhatTheyAre) {
  v1::ListJobsRequest request;
  EXPECT_THAT(List(request), ElementsAre("job1", "job2", "job3", "job4", "job5"));
  (*request.mutable_labels())["parity"] = "odd";
  EXPECT_THAT(List(request), ElementsAre("job1", "job3", "job5"));
  request.set_user("bob");
  EXPECT_THAT(List(request), ElementsAre("job3", "job5"));
  EXPECT_EQ(reply_.total(), 2u);
  request.set_name_prefix("job5");
  EXPECT_THAT(List(request), ElementsAre("job5"));
  request.Clear();
  ASSERT_TRUE(jobs_.queue().Pause("job2").ok());
  request.add_states(v1::Job::PAUSED);
  request.add_states(v1::Job::RUNNING);
  EXPECT_THAT(List(request), ElementsAre("job2"));
}

TEST_F(JobsServiceTest, PagesGiveEachJobOnce) {
  for (const bool newest_first : {false, true}) {
    v1::ListJobsRequest request;
    request.set_page_size(2);
    request.set_newest_first(newest_first);
    std::vector<std::string> ids;
    for (int page = 0; page < 3; ++page) {
      for (const std::string& id : List(request)) ids.push_back(id);
      EXPECT_EQ(reply_.total(), 5u);
      request.set_page_token(reply_.next_page_token());
    }
    EXPECT_EQ(reply_.next_page_token(), "");
    if (newest_first) std::reverse(ids.begin(), ids.end());
    EXPECT_THAT(ids, ElementsAre("job1", "job2", "job3", "job4", "job5"));
  }
  v1::ListJobsRequest request;
  request.set_page_token("job9");
  EXPECT_EQ(service_.ListJobs(nullptr, &request, &reply_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.Clear();
  request.set_page_size(1001);
  EXPECT_THAT(service_.ListJobs(nullptr, &request, &reply_).error_message(), HasSubstr("at most 1000"));
}

TEST_F(JobsServiceTest, LivingMembersAreListed) {
  v1::JoinRequest join;
  join.set_role(v1::WORKER);
  join.set_name("w");
  join.set_processor("Zen");
  join.set_threads(3);
  ASSERT_TRUE(members_.Join(join, absl::Now()).ok());
  join.set_role(v1::SHARD);
  join.set_name("s");
  join.set_address("10.0.0.2:7401");
  ASSERT_TRUE(members_.Join(join, absl::Now()).ok());
  v1::ListMembersReply reply;
  ASSERT_TRUE(service_.ListMembers(nullptr, nullptr, &reply).ok());
  EXPECT_EQ(reply.wanted_shards(), 2u);
  ASSERT_EQ(reply.members_size(), 2);
  EXPECT_EQ(reply.members(0).role(), "shard");
  EXPECT_EQ(reply.members(0).address(), "10.0.0.2:7401");
  EXPECT_EQ(reply.members(1).name(), "w");
  EXPECT_EQ(reply.members(1).processor(), "Zen");
  EXPECT_EQ(reply.members(1).threads(), 3u);
}

}  // namespace
}  // namespace millrace::coordinator
