// The dashboard in a real browser, over jobs whose training is simulated: what it shows of them, and what people do.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/http_server.h"
#include "coordinator/page_http.h"
#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/browser.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::AllOf;
using testing::Browser;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::kDesktop;
using testing::kTelephone;

class DashboardTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { browser_ = new Browser; }
  static void TearDownTestSuite() { delete browser_; }

  DashboardTest() {
    AccessOptions access;
    access.metrics = &metrics_;
    access_ = std::make_unique<Access>(std::move(access));
    JobsService::Parts served;
    served.queue = &jobs_.queue();
    served.book = &jobs_.book();
    served.members = &members_;
    served.wanted_shards = 2;
    service_ = std::make_unique<JobsService>(served);
    PageHttp::Parts parts;
    parts.jobs = service_.get();
    parts.book = &jobs_.book();
    parts.access = access_.get();
    pages_ = std::make_unique<PageHttp>(std::move(parts));
    HttpServerOptions options;
    options.listen = "127.0.0.1:0";
    options.max_body_bytes = kMaxPageBodyBytes;
    options.answer = [this](const HttpRequest& request) { return pages_->Answer(request); };
    options.refuse = &RatingsHttp::Refuse;
    auto server = HttpServer::Start(std::move(options));
    EXPECT_OK(server);
    server_ = *std::move(server);
  }
  ~DashboardTest() override {
    if (tab_ != nullptr) {
      EXPECT_THAT(tab_->TakeComplaints(), IsEmpty());
    }
    tab_.reset();
    server_.reset();
  }

  std::string Submit(const std::string& name, const std::vector<std::string>& overrides = {}) {
    v1::SubmitJobRequest request = jobs_.Request();
    request.add_overrides("name=" + name);
    for (const std::string& override_text : overrides) request.add_overrides(override_text);
    const auto job = jobs_.queue().Submit(request, "ann");
    EXPECT_OK(job);
    return job.ok() ? job->id() : "";
  }
  // As if the job had been trained for so many steps.
  void Train(const std::string& id, uint64_t steps) {
    for (uint64_t step = 1; step <= steps; ++step) {
      v1::JobEvent event;
      event.mutable_step()->set_phase("p");
      event.mutable_step()->set_step(step);
      event.mutable_step()->set_tokens(64 * step);
      event.mutable_step()->set_loss(4 / (1 + 0.01 * static_cast<double>(step)));
      event.mutable_step()->set_learning_rate(0.1);
      jobs_.book().Append(id, event);
      if (step % 100 != 0) continue;
      v1::JobEvent evaluated;
      evaluated.mutable_evaluation()->set_phase("p");
      evaluated.mutable_evaluation()->set_step(step);
      evaluated.mutable_evaluation()->set_loss(4.5 / (1 + 0.01 * static_cast<double>(step)));
      evaluated.mutable_evaluation()->set_perplexity(3);
      jobs_.book().Append(id, evaluated);
    }
    jobs_.book().Update(id, [&](v1::Job* job) {
      job->set_phase("p");
      job->set_step(steps);
      job->set_max_steps(2 * steps);
      job->set_train_loss(1.25);
      job->set_held_out_loss(1.5);
    });
    ASSERT_OK(jobs_.book().SetState(id, v1::Job::RUNNING, [](v1::Job*) {}));
  }

  void Open(const std::string& place = "#/", testing::Screen screen = kDesktop) {
    tab_ = browser_->NewTab(screen);
    tab_->Load(absl::StrCat("http://", server_->address(), "/", place));
    tab_->Await("document.querySelector('#summary').textContent !== ''");
  }
  std::string Text(const std::string& selector) {
    return tab_->Evaluate("document.querySelector('" + selector + "').innerText").get<std::string>();
  }
  void AwaitText(const std::string& selector, const std::string& text) {
    tab_->Await(absl::StrCat("document.querySelector('", selector, "')?.innerText.includes(",
                             nlohmann::json(text).dump(), ") === true"));
  }
  std::vector<std::string> Rows() {
    return tab_->Evaluate("[...document.querySelectorAll('#jobs-table tbody tr')].map((row) => row.dataset.id)");
  }
  // How many lines a chart draws.
  void AwaitCurves(const std::string& chart, int count) {
    tab_->Await(absl::StrCat("document.querySelectorAll('", chart, " .entry').length === ", count));
  }
  // Whether anything is painted in a chart.
  bool IsPainted(const std::string& chart) {
    return tab_->Evaluate(absl::StrCat("[...document.querySelectorAll('", chart, R"js( canvas')].some((canvas) => canvas
        .getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte !== 0)))js"));
  }
  void SetValue(const std::string& selector, const std::string& value, const std::string& event) {
    tab_->Evaluate(absl::StrCat("(() => { const e = document.querySelector('", selector,
                                "'); e.value = ", nlohmann::json(value).dump(), "; e.dispatchEvent(new Event('", event,
                                "', {bubbles: true})); })()"));
  }
  v1::Job::State StateOf(const std::string& id) { return jobs_.book().Get(id)->state(); }

  static Browser* browser_;

  Metrics metrics_;
  SimulatedJobs jobs_{[](const v1::JobSpec&, uint64_t) { return 1.0; }};
  Members members_{Members::Options()};
  std::unique_ptr<JobsService> service_;
  std::unique_ptr<Access> access_;
  std::unique_ptr<PageHttp> pages_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<Browser::Tab> tab_;
};

Browser* DashboardTest::browser_ = nullptr;

TEST_F(DashboardTest, JobsAreListedFoundAndLaidOverEachOther) {
  Submit("alpha", {"labels={team: search}"});
  Submit("beta", {"priority=90"});
  Submit("gamma");
  Train("alpha", 500);
  Train("gamma", 300);
  Open();
  EXPECT_THAT(Rows(), ElementsAre("gamma", "beta", "alpha"));
  EXPECT_THAT(Text("#jobs-table tbody tr:nth-child(2)"), HasSubstr("queued (next)"));
  EXPECT_THAT(Text("#jobs-table tbody tr:nth-child(3)"), HasSubstr("team=search"));
  EXPECT_THAT(Text("#jobs-table tbody tr:nth-child(3)"), HasSubstr("500 / 1000"));
  EXPECT_THAT(Text("#jobs-table tbody tr:nth-child(3)"), HasSubstr("1.5000"));
  EXPECT_THAT(Text("#jobs-table tbody tr:nth-child(3)"), HasSubstr("ann"));
  EXPECT_EQ(Text("#summary"), "2 running, 1 queued · 0 workers, 0/2 shards");
  // The newest that trains is drawn by itself: both of its losses.
  AwaitCurves("#compare-chart", 2);
  EXPECT_TRUE(IsPainted("#compare-chart"));
  tab_->Click("#jobs-table tbody tr:nth-child(3) input");
  AwaitCurves("#compare-chart", 4);
  EXPECT_THAT(Text("#compare-chart .chart-legend"), HasSubstr("alpha, held-out loss"));
  // The address is a link to the comparison.
  EXPECT_EQ(tab_->Evaluate("location.hash"), "#/jobs/gamma,alpha");
  tab_->Reload();
  AwaitCurves("#compare-chart", 4);
  for (const char* axis : {"tokens", "time", "steps"}) {
    SetValue("#compare-chart-axis", axis, "change");
    EXPECT_TRUE(IsPainted("#compare-chart")) << axis;
  }
  tab_->Click("#compare-chart-log");
  EXPECT_TRUE(IsPainted("#compare-chart"));
  SetValue("#compare-chart-metric", "learning_rate", "change");
  AwaitCurves("#compare-chart", 2);

  SetValue("#filter", "team=search", "input");
  tab_->Await("document.querySelectorAll('#jobs-table tbody tr').length === 1");
  EXPECT_THAT(Rows(), ElementsAre("alpha"));
  SetValue("#filter", "be", "input");
  tab_->Await("document.querySelector('#jobs-table tbody tr')?.dataset.id === 'beta'");
  SetValue("#filter", "", "input");
  SetValue("#state-filter", "RUNNING", "input");
  tab_->Await("document.querySelectorAll('#jobs-table tbody tr').length === 2");
}

TEST_F(DashboardTest, WhatHappensIsSeenWithoutLoadingAgain) {
  Submit("alpha");
  Open();
  EXPECT_THAT(Text("#jobs-table tbody"), HasSubstr("queued"));
  Train("alpha", 200);
  AwaitText("#jobs-table tbody", "running");
  AwaitCurves("#compare-chart", 2);
  tab_->Click("#jobs-table tbody a");
  AwaitText("#job-facts", "1.2500");
  AwaitText("#events", "p step 200: held-out loss 1.5000");
  EXPECT_EQ(Text("#job-progress-text"), "Step 200 of 400");
  EXPECT_THAT(Text("#phases"), HasSubstr("p: causal_lm, at present"));
  AwaitCurves("#job-chart", 2);
  EXPECT_TRUE(IsPainted("#job-chart"));
  jobs_.book().Log("alpha", "warning", "a worker went <b>away</b>");
  AwaitText("#events .warning", "a worker went <b>away</b>");  // text, no markup
}

TEST_F(DashboardTest, WhatTheModelWroteStandsSideBySide) {
  Submit("alpha");
  Train("alpha", 200);
  const auto write = [this](uint64_t step, const std::string& text) {
    v1::JobEvent event;
    event.mutable_samples()->set_phase("p");
    event.mutable_samples()->set_step(step);
    for (const char* prompt : {"In the", ""}) {
      v1::Sample& sample = *event.mutable_samples()->add_samples();
      sample.set_prompt(prompt);
      sample.set_text(text);
      sample.set_ended(prompt[0] == '\0');
    }
    jobs_.book().Append("alpha", event);
  };
  write(100, "<b>x</b>");
  Open("#/job/alpha");
  AwaitText("#samples-table thead", "step 100");
  write(200, "y");
  AwaitText("#samples-table thead", "step 200");
  const auto cells = [this](int row) -> std::vector<std::string> {
    return tab_->Evaluate(absl::StrCat("[...document.querySelectorAll('#samples-table tbody tr:nth-child(", row,
                                       ") > *')].map((cell) => cell.textContent)"));
  };
  EXPECT_THAT(cells(1), ElementsAre("In the", "<b>x</b> …", "y …"));  // text, no markup
  EXPECT_THAT(cells(2), ElementsAre("(nothing)", "<b>x</b>", "y"));
  // What happens again replaces what was shown, and of many evaluations the first and the newest stay.
  write(200, "z");
  tab_->Await("document.querySelector('#samples-table tbody td:last-child').textContent === 'z …'");
  for (uint64_t step = 300; step <= 6000; step += 100) write(step, "more");
  AwaitText("#samples-table thead", "step 6000");
  EXPECT_EQ(cells(1).size(), 41u);
  EXPECT_EQ(cells(1)[1], "<b>x</b> …");
  EXPECT_EQ(tab_->Evaluate("document.documentElement.scrollWidth <= innerWidth"), true);

  Submit("beta");
  tab_->Evaluate("location.hash = '#/job/beta'");
  AwaitText("#job-heading", "beta");
  tab_->Await("document.querySelector('#samples').hidden");
}

TEST_F(DashboardTest, NothingIsDoneUnconfirmed) {
  Submit("alpha");
  Open("#/job/alpha");
  AwaitText("#job-facts", "queued");
  tab_->Click("#pause");
  tab_->Await("document.querySelector('#confirm').open");
  EXPECT_THAT(Text("#confirm-text"), HasSubstr("Pause alpha?"));
  tab_->Press("Escape");
  tab_->Await("!document.querySelector('#confirm').open");
  EXPECT_EQ(StateOf("alpha"), v1::Job::QUEUED);
  const struct {
    const char* button;
    v1::Job::State state;
  } steps[] = {{"#pause", v1::Job::PAUSED}, {"#resume", v1::Job::QUEUED}, {"#cancel", v1::Job::CANCELLED}};
  for (const auto& step : steps) {
    tab_->Await(absl::StrCat("!document.querySelector('", step.button, "').hidden"));
    tab_->Click(step.button);
    tab_->Await("document.querySelector('#confirm').open");
    tab_->Click("#confirm-yes");
    tab_->Await(absl::StrCat("document.querySelector('", step.button, "').hidden"));
    EXPECT_EQ(StateOf("alpha"), step.state) << step.button;
  }
  tab_->Click("#delete");
  tab_->Await("document.querySelector('#confirm').open");
  tab_->Click("#confirm-yes");
  AwaitText("#status", "0 jobs");
  EXPECT_THAT(jobs_.book().List(), IsEmpty());
  // Curves of the job may have been asked for as it went.
  for (const std::string& complaint : tab_->TakeComplaints()) {
    EXPECT_THAT(complaint, AllOf(HasSubstr("404 (Not Found)"), HasSubstr("GetCurves")));
  }
}

TEST_F(DashboardTest, JobFilesAreComparedCheckedAndSubmitted) {
  Submit("alpha");
  Submit("beta", {"phases.0.optimizer.lr=0.25"});
  Open("#/job/beta");
  AwaitText("#job-file", "lr: 0.25");
  tab_->Await("document.querySelector('#other-job').options.length === 2");
  SetValue("#other-job", "alpha", "change");
  AwaitText("#job-file", "lr: 0.1");
  const std::vector<std::string> added =
      tab_->Evaluate("[...document.querySelectorAll('#job-file .added')].map((e) => e.textContent.trim())");
  EXPECT_THAT(added, ElementsAre("name: \"beta\"", "lr: 0.25"));

  tab_->Click("#again");
  tab_->Await("document.querySelector('#submit-yaml').value.includes('lr: 0.25')");
  const std::string like = tab_->Evaluate("document.querySelector('#submit-yaml').value");
  SetValue("#submit-yaml", "name: gamma\nmodle: 3\n", "input");
  tab_->Click("#check");
  AwaitText("#trouble", "did you mean 'model'?");
  EXPECT_THAT(tab_->TakeComplaints(), ElementsAre(HasSubstr("400 (Bad Request)")));
  // What the page makes of a job is a job file again.
  SetValue("#submit-yaml", like, "input");
  tab_->Click("#check");
  AwaitText("#checked", "name: \"beta\"");
  EXPECT_EQ(jobs_.book().List().size(), 2u);
  tab_->Click("#submit-form button[type=submit]");
  tab_->Await("document.querySelector('#confirm').open");
  tab_->Click("#confirm-yes");
  AwaitText("#job-heading", "beta-2");
  EXPECT_EQ(jobs_.book().Get("beta-2")->spec().phases(0).optimizer().lr(), 0.25);
}

TEST_F(DashboardTest, TheClusterShowsWhoIsSilent) {
  v1::JoinRequest join;
  join.set_role(v1::SHARD);
  join.set_name("shard-0");
  join.set_address("10.0.0.2:7401");
  ASSERT_OK(members_.Join(join, absl::Now()));
  join.set_role(v1::WORKER);
  join.set_name("worker-0");
  join.clear_address();
  ASSERT_OK(members_.Join(join, absl::Now() - absl::Seconds(7)));
  Open("#/cluster");
  AwaitText("#members", "worker-0");
  EXPECT_EQ(Text("#cluster-summary"), "1 workers; 1 of 2 shards: jobs wait for the others");
  EXPECT_THAT(Text("#members tbody tr:nth-child(1)"), HasSubstr("10.0.0.2:7401"));
  EXPECT_THAT(Text("#members tbody tr:nth-child(2)"), HasSubstr("silent for"));
}

TEST_F(DashboardTest, KeysReachEverything) {
  for (const char* name : {"alpha", "beta", "gamma"}) Submit(name);
  Open();
  tab_->Press("j");
  tab_->Press("j");
  tab_->Await("document.activeElement.textContent === 'beta'");
  tab_->Press("k");
  tab_->Await("document.activeElement.textContent === 'gamma'");
  tab_->Press("x");
  tab_->Await("document.querySelector('#jobs-table tbody tr input').checked");
  tab_->Press("Enter");
  AwaitText("#job-heading", "gamma");
  tab_->Press("c");
  tab_->Await("!document.querySelector('#cluster-view').hidden");
  tab_->Press("n");
  tab_->Await("document.activeElement.id === 'submit-yaml'");
  tab_->Press("Escape");
  tab_->Press("?");
  tab_->Await("document.querySelector('#help').open");
  tab_->Press("Escape");
  tab_->Press("/");
  tab_->Await("document.activeElement.id === 'filter'");
}

TEST_F(DashboardTest, ItIsLegibleByDayAndNight) {
  Submit("alpha", {"labels={team: search}"});
  Train("alpha", 200);
  v1::JobEvent written;
  written.mutable_samples()->set_step(200);
  written.mutable_samples()->add_samples()->set_text("wrote this");
  jobs_.book().Append("alpha", written);
  jobs_.book().Log("alpha", "error", "something is wrong");
  for (const testing::Screen screen : {kDesktop, kTelephone}) {
    for (const char* place : {"#/", "#/job/alpha", "#/submit", "#/cluster"}) {
      Open(place, screen);
      if (absl::StrContains(place, "alpha")) AwaitText("#events", "something is wrong");
      for (const bool dark : {false, true}) {
        tab_->SetDarkMode(dark);
        EXPECT_EQ(tab_->PoorContrasts(), nlohmann::json::array()) << place << " " << dark;
      }
      EXPECT_EQ(tab_->Evaluate("document.documentElement.scrollWidth <= innerWidth"), true) << place << screen.width;
      EXPECT_THAT(tab_->TakeComplaints(), IsEmpty()) << place;
    }
  }
}

TEST_F(DashboardTest, AHundredJobsAndManyPointsAreShown) {
  for (int i = 0; i < 110; ++i) Submit(absl::StrCat("job-", i));
  for (int i = 90; i < 110; ++i) Train(absl::StrCat("job-", i), 2000);
  Open();
  EXPECT_EQ(Rows().size(), 100u);
  for (int row = 2; row <= 20; ++row) tab_->Click(absl::StrCat("#jobs-table tbody tr:nth-child(", row, ") input"));
  AwaitCurves("#compare-chart", 40);
  EXPECT_TRUE(IsPainted("#compare-chart"));
  tab_->Click("#more-button");
  tab_->Await("document.querySelectorAll('#jobs-table tbody tr').length === 110");
}

}  // namespace
}  // namespace millrace::coordinator
