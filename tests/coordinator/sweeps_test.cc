#include "coordinator/sweeps.h"

#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/yaml_message.h"
#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

v1::SweepSpec Parsed(const std::string& yaml) {
  v1::SweepSpec sweep;
  EXPECT_OK(ParseYaml(yaml, {"sweep.yaml", "sweep"}, &sweep));
  FillRuleDefaults(&sweep);
  return sweep;
}

std::string Refusal(const std::string& yaml) { return std::string(TrialsOf(Parsed(yaml)).status().message()); }

TEST(Sweeps, AGridIsEveryCombination) {
  const auto trials = TrialsOf(Parsed(R"(
name: g
parameters:
  - {field: seed, values: [1, 2]}
  - {field: phases.0.optimizer.lr, values: [0.1, 0.2, 0.3]}
)"));
  ASSERT_OK(trials);
  std::vector<std::string> all;
  for (const auto& trial : *trials) all.push_back(absl::StrJoin(trial, " "));
  EXPECT_THAT(all, ElementsAre("seed=1 phases.0.optimizer.lr=0.1", "seed=1 phases.0.optimizer.lr=0.2",
                               "seed=1 phases.0.optimizer.lr=0.3", "seed=2 phases.0.optimizer.lr=0.1",
                               "seed=2 phases.0.optimizer.lr=0.2", "seed=2 phases.0.optimizer.lr=0.3"));
}

TEST(Sweeps, HasBounds) {
  v1::SweepSpec sweep = Parsed("name: g\nparameters: [{field: seed, values: [1]}]\n");
  for (int i = 0; i < 64; ++i) {
    v1::SweepParameter* const parameter = sweep.add_parameters();
    parameter->set_field(absl::StrCat("f", i));
    parameter->add_values("1");
  }
  EXPECT_THAT(std::string(TrialsOf(sweep).status().message()), HasSubstr("parameters: there are 65; at most 64"));
  sweep.mutable_parameters()->RemoveLast();
  EXPECT_OK(TrialsOf(sweep));
  sweep.mutable_parameters(0)->set_values(0, std::string(1 << 20, 'x'));
  EXPECT_THAT(std::string(TrialsOf(sweep).status().message()), HasSubstr("the sweep is larger than 1048576 bytes"));
}

TEST(Sweeps, DrawsAreWithinTheirBoundsAndTheSameEachTime) {
  const std::string yaml = R"(
name: r
method: random
trials: 500
parameters:
  - {field: lr, min: 1.0e-4, max: 1.0e-1, log: true}
  - {field: layers, min: 2, max: 6, whole: true}
  - {field: type, values: [adamw, muon]}
)";
  const auto trials = TrialsOf(Parsed(yaml));
  ASSERT_OK(trials);
  ASSERT_EQ(trials->size(), 500u);
  int below = 0;
  std::set<std::string> layers, types;
  for (const auto& trial : *trials) {
    double lr = 0;
    ASSERT_TRUE(absl::SimpleAtod(std::vector<std::string>(absl::StrSplit(trial[0], '='))[1], &lr));
    EXPECT_GE(lr, 1e-4);
    EXPECT_LE(lr, 1e-1);
    below += lr < std::sqrt(1e-4 * 1e-1);  // the middle of a logarithmic scale
    layers.insert(trial[1]);
    types.insert(trial[2]);
  }
  EXPECT_NEAR(below, 250, 56);  // five standard deviations
  EXPECT_THAT(layers, ElementsAre("layers=2", "layers=3", "layers=4", "layers=5", "layers=6"));
  EXPECT_THAT(types, ElementsAre("type=adamw", "type=muon"));
  EXPECT_EQ(*TrialsOf(Parsed(yaml)), *trials);
  EXPECT_NE(*TrialsOf(Parsed(yaml + "seed: 2\n")), *trials);
}

TEST(Sweeps, WhatCannotBeIsRefusedByName) {
  const std::string a = "name: s\nparameters: [{field: seed, values: [1]}]\n";
  EXPECT_THAT(Refusal("name: s\n"), HasSubstr("parameters is missing"));
  EXPECT_THAT(Refusal("name: ../s\nparameters: [{field: seed, values: [1]}]\n"), HasSubstr("is no name"));
  EXPECT_THAT(Refusal(a + "method: random\n"), HasSubstr("trials is missing"));
  EXPECT_THAT(Refusal(a + "trials: 3\n"), HasSubstr("a grid has as many as combinations"));
  EXPECT_THAT(Refusal("name: s\nparameters: [{field: seed}]\n"),
              HasSubstr("parameters.0: either values or min and max are wanted"));
  EXPECT_THAT(Refusal("name: s\nparameters: [{field: lr, min: 1, max: 2}]\n"), HasSubstr("a grid is made of values"));
  EXPECT_THAT(Refusal("name: s\nmethod: random\ntrials: 1\nparameters: [{field: lr, min: 2, max: 1}]\n"),
              HasSubstr("min must be below max"));
  EXPECT_THAT(Refusal("name: s\nmethod: random\ntrials: 1\nparameters: [{field: lr, min: 0, max: 1, log: true}]\n"),
              HasSubstr("log needs a min above 0"));
  EXPECT_THAT(Refusal("name: s\nparameters: [{field: seed, values: [1]}, {field: seed, values: [2]}]\n"),
              HasSubstr("parameters.1.field: 'seed' is set otherwise"));
  EXPECT_THAT(Refusal(a + "halving: {steps: [20, 20]}\n"), HasSubstr("halving.steps must rise"));
  std::string many = "name: s\nparameters:\n";
  for (const char* field : {"a", "b", "c"}) {
    absl::StrAppend(&many, "  - {field: ", field, ", values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}\n");
  }
  EXPECT_THAT(Refusal(many), HasSubstr("more than 1000 combinations"));
}

TEST(Sweeps, TheBetterShareGoesOn) {
  EXPECT_THAT(Survivors({3, 1, 2, 4}, 0.5), ElementsAre(1, 2));
  EXPECT_THAT(Survivors({3, 1, 2}, 0.5), ElementsAre(1, 2));  // rounded up
  EXPECT_THAT(Survivors({1, 1, 1, 1}, 0.25), ElementsAre(0));
  EXPECT_THAT(Survivors({kNan, 5, kNan, 4}, 0.25), ElementsAre(3));
  EXPECT_THAT(Survivors({kNan, 5}, 0.01), ElementsAre(1));
  EXPECT_THAT(Survivors({kNan, kNan}, 0.5), IsEmpty());
}

// Losses fall to the trial's seed, at rates that differ: what is ahead at step 10 need not be at step 20.
std::optional<double> Falling(const v1::JobSpec& job, uint64_t step) {
  if (job.seed() == 9) return std::nullopt;
  return static_cast<double>(job.seed()) + 10.0 / static_cast<double>(step);
}

class RunningSweep : public ::testing::Test {
 protected:
  void Open() {
    auto sweeps = Sweeps::Open(&jobs_.store(), &jobs_.book(), &jobs_.queue());
    ASSERT_OK(sweeps);
    sweeps_ = *std::move(sweeps);
  }
  v1::StartSweepRequest Request(const std::string& seeds, const std::string& halving) {
    v1::StartSweepRequest request;
    *request.mutable_sweep() =
        Parsed(absl::StrCat("name: s\nparameters: [{field: seed, values: [", seeds, "]}]\n", halving));
    *request.mutable_job() = jobs_.Request();
    return request;
  }
  v1::Sweep AwaitEnd() {
    uint64_t seen = 0;
    for (;;) {
      sweeps_->Tick();
      const v1::Sweep sweep = *sweeps_->Get("s");
      if (sweep.state() != v1::Sweep::RUNNING) return sweep;
      jobs_.book().AwaitChange(&seen);
    }
  }

  SimulatedJobs jobs_{&Falling};
  std::unique_ptr<Sweeps> sweeps_;
};

TEST_F(RunningSweep, AllTrialsAreTrainedAndTheBestIsFound) {
  Open();
  const auto started = sweeps_->Start(Request("3, 1, 9, 2", ""), "ann");
  ASSERT_OK(started);
  EXPECT_EQ(started->trials_size(), 4);
  EXPECT_EQ(jobs_.book().Get("s-2")->sweep_id(), "s");
  EXPECT_EQ(jobs_.book().Get("s-2")->user(), "ann");
  jobs_.Run();
  const v1::Sweep ended = AwaitEnd();
  EXPECT_EQ(ended.state(), v1::Sweep::SUCCEEDED);
  EXPECT_EQ(ended.best_job_id(), "s-2");
  EXPECT_EQ(ended.trials(0).state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(ended.trials(2).state(), v1::Job::FAILED);
  EXPECT_EQ(ended.trials(3).best_held_out_loss(), 2.25);
  jobs_.StopRunning();
  sweeps_.reset();
  jobs_.Restart();
  Open();
  EXPECT_EQ(sweeps_->Get("s")->best_job_id(), "s-2");
  EXPECT_EQ(sweeps_->Start(Request("1", ""), "")->id(), "s-2");
}

TEST_F(RunningSweep, TrialsThatDoWorseAreGivenUp) {
  Open();
  ASSERT_OK(sweeps_->Start(Request("4, 3, 9, 1, 2, 5", "halving: {steps: [10, 20]}\n"), ""));
  jobs_.Run([this] { sweeps_->Tick(); });
  const v1::Sweep ended = AwaitEnd();
  EXPECT_EQ(ended.best_job_id(), "s-4");
  std::vector<std::string> fates;
  for (const v1::Trial& trial : ended.trials()) {
    fates.push_back(absl::StrCat(trial.step(), " ", trial.rung(), " ", trial.stop_reason()));
  }
  // Of six 4, 5 and the failed one go; of three the worst.
  EXPECT_THAT(fates,
              ElementsAre("10 0 halved", "20 1 halved", "10 0 ", "40 2 max_steps", "40 2 max_steps", "10 0 halved"));
  EXPECT_THAT(ended.trials(3).rung_losses(), ElementsAre(2, 1.5));
}

TEST_F(RunningSweep, AComparisonSurvivesTheCoordinator) {
  Open();
  ASSERT_OK(sweeps_->Start(Request("2, 1", "halving: {steps: [10]}\n"), ""));
  // The second trial pauses; then everything ends before anybody compares.
  int evaluations = 0;
  jobs_.Run([&] {
    if (++evaluations <= 2) sweeps_->Tick();
  });
  uint64_t seen = 0;
  while (jobs_.book().Get("s-2")->state() != v1::Job::PAUSED) jobs_.book().AwaitChange(&seen);
  EXPECT_EQ(jobs_.book().Get("s-1")->state(), v1::Job::PAUSED);
  jobs_.StopRunning();
  sweeps_.reset();
  jobs_.Restart();
  Open();
  jobs_.Run([this] { sweeps_->Tick(); });
  const v1::Sweep ended = AwaitEnd();
  EXPECT_EQ(ended.trials(0).stop_reason(), "halved");
  EXPECT_EQ(ended.trials(1).state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(ended.best_job_id(), "s-2");
}

TEST_F(RunningSweep, AllOrNothingIsSubmitted) {
  Open();
  v1::StartSweepRequest request = Request("1, 2", "halving: {steps: [15]}\n");
  EXPECT_THAT(sweeps_->Start(request, "").status().message(), HasSubstr("evaluates every 10 steps, not at step 15"));
  request = Request("1, 2", "halving: {steps: [40]}\n");
  EXPECT_THAT(sweeps_->Start(request, "").status().message(), HasSubstr("ends at step 40"));
  EXPECT_THAT(sweeps_->Start(Request("1, x", ""), "").status().message(),
              HasSubstr("trial 2: --set seed=x: seed: a whole number"));
  EXPECT_THAT(jobs_.book().List(), IsEmpty());
  EXPECT_THAT(sweeps_->List(), IsEmpty());
}

TEST_F(RunningSweep, ItIsCancelled) {
  Open();
  ASSERT_OK(sweeps_->Start(Request("1, 2", ""), ""));
  EXPECT_EQ(sweeps_->Cancel("s")->state(), v1::Sweep::CANCELLED);
  for (const v1::Job& job : jobs_.book().List()) EXPECT_EQ(job.state(), v1::Job::CANCELLED);
  EXPECT_THAT(sweeps_->Cancel("t").status().message(), HasSubstr("no sweep 't'; there are: s"));
}

}  // namespace
}  // namespace millrace::coordinator
