#include "coordinator/curves.h"

#include <algorithm>
#include <cmath>

#include "coordinator/simulated_jobs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"

namespace millrace::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LargestTriangles, KeepsEndsOrderAndSpikes) {
  std::vector<double> x(10'000), y(10'000);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<double>(i);
    y[i] = std::sin(x[i] / 500);
  }
  y[4321] = 50;
  for (const size_t count : {3u, 4u, 100u, 9'999u}) {
    const std::vector<size_t> chosen = LargestTriangles(x, y, count);
    ASSERT_EQ(chosen.size(), count);
    EXPECT_EQ(chosen.front(), 0u);
    EXPECT_EQ(chosen.back(), x.size() - 1);
    EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end(), std::less_equal<>()));
    EXPECT_TRUE(std::binary_search(chosen.begin(), chosen.end(), 4321)) << count;
  }
}

TEST(LargestTriangles, StaysCloseToTheCurve) {
  std::vector<double> x(100'000), y(100'000);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<double>(i);
    y[i] = 3 / std::sqrt(1 + x[i]) + 0.5 * std::cos(x[i] / 3000);
  }
  const std::vector<size_t> chosen = LargestTriangles(x, y, 500);
  double error = 0;
  for (size_t k = 0; k + 1 < chosen.size(); ++k) {
    for (size_t i = chosen[k]; i < chosen[k + 1]; ++i) {
      const double share = (x[i] - x[chosen[k]]) / (x[chosen[k + 1]] - x[chosen[k]]);
      error += std::fabs(y[chosen[k]] + share * (y[chosen[k + 1]] - y[chosen[k]]) - y[i]);
    }
  }
  EXPECT_LT(error / static_cast<double>(x.size()), 0.005 * 3.5);  // half a percent of its height
}

class CurvesTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(jobs_.queue().Submit(jobs_.Request())); }

  void Step(uint64_t step, double loss, const std::string& phase = "p") {
    v1::JobEvent event;
    event.mutable_step()->set_phase(phase);
    event.mutable_step()->set_step(step);
    event.mutable_step()->set_tokens(100 * step);
    event.mutable_step()->set_loss(loss);
    jobs_.book().Append("mine", event);
  }
  void Evaluation(uint64_t step, double loss, double accuracy) {
    v1::JobEvent event;
    event.mutable_evaluation()->set_phase("p");
    event.mutable_evaluation()->set_step(step);
    event.mutable_evaluation()->set_loss(loss);
    (*event.mutable_evaluation()->mutable_statistics())["accuracy"] = accuracy;
    jobs_.book().Append("mine", event);
  }
  std::vector<v1::Curve> Draw(const std::vector<std::string>& metrics, uint32_t points = 0) {
    v1::GetCurvesRequest request;
    request.add_job_ids("mine");
    for (const std::string& metric : metrics) request.add_metrics(metric);
    request.set_max_points(points);
    const auto reply = curves_.Get(request);
    EXPECT_OK(reply);
    return std::vector<v1::Curve>(reply->curves().begin(), reply->curves().end());
  }

  SimulatedJobs jobs_{[](const v1::JobSpec&, uint64_t) { return 1.0; }};
  Curves curves_{&jobs_.book()};
};

TEST_F(CurvesTest, WhatWasMeasuredIsDrawnAndGoesOn) {
  Step(1, 3);
  Step(2, 2);
  Evaluation(2, 2.5, 0.5);
  std::vector<v1::Curve> curves = Draw({"train_loss", "held_out_loss", "held_out/accuracy"});
  ASSERT_EQ(curves.size(), 3u);
  EXPECT_EQ(curves[0].metric(), "train_loss");
  EXPECT_EQ(curves[0].phase(), "p");
  EXPECT_THAT(curves[0].steps(), ElementsAre(1, 2));
  EXPECT_THAT(curves[0].tokens(), ElementsAre(100, 200));
  EXPECT_THAT(curves[0].values(), ElementsAre(3, 2));
  EXPECT_EQ(curves[1].metric(), "held_out/accuracy");
  EXPECT_EQ(curves[2].metric(), "held_out_loss");
  EXPECT_THAT(curves[2].tokens(), ElementsAre(200));
  Step(3, 1);
  Step(1, 5, "q");
  curves = Draw({"train_loss"});
  ASSERT_EQ(curves.size(), 2u);
  EXPECT_THAT(curves[0].values(), ElementsAre(3, 2, 1));
  EXPECT_EQ(curves[1].phase(), "q");
  EXPECT_EQ(Draw({}).size(), 2u * 4 + 2);
}

TEST_F(CurvesTest, WhatIsTrainedAgainIsDrawnOnce) {
  for (int step = 1; step <= 5; ++step) Step(static_cast<uint64_t>(step), step);
  ASSERT_OK(jobs_.book().Flush());
  EXPECT_EQ(Draw({"train_loss"})[0].points(), 5u);
  ASSERT_OK(jobs_.book().Supersede("mine", "p", 3));
  Step(4, 40);
  EXPECT_THAT(Draw({"train_loss"})[0].values(), ElementsAre(1, 2, 3, 40));
}

TEST_F(CurvesTest, ALaterJobOfTheSameNameIsAnother) {
  Step(1, 1);
  EXPECT_EQ(Draw({"train_loss"})[0].points(), 1u);
  ASSERT_OK(jobs_.queue().Cancel("mine"));
  ASSERT_OK(jobs_.queue().Delete("mine"));
  jobs_.book().Wake();
  ASSERT_OK(jobs_.queue().Submit(jobs_.Request()));
  Step(7, 7);
  EXPECT_THAT(Draw({"train_loss"})[0].steps(), ElementsAre(7));
}

TEST_F(CurvesTest, ManyPointsBecomeFew) {
  for (uint64_t step = 1; step <= 10'000; ++step) Step(step, 1 / static_cast<double>(step));
  const v1::Curve curve = Draw({"train_loss"}, 50)[0];
  EXPECT_EQ(curve.points(), 10'000u);
  EXPECT_EQ(curve.values_size(), 50);
  EXPECT_EQ(curve.steps(0), 1u);
  EXPECT_EQ(curve.steps(49), 10'000u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(curve.values(i), 1 / static_cast<double>(curve.steps(i)));
}

TEST_F(CurvesTest, ALossThatIsNotMeasuredYetIsNoMistake) {
  Step(1, 1);
  v1::GetCurvesRequest request;
  request.add_job_ids("mine");
  request.add_metrics("train_loss");
  request.add_metrics("held_out_loss");
  const auto reply = curves_.Get(request);
  ASSERT_OK(reply);
  ASSERT_EQ(reply->curves_size(), 1);
  EXPECT_EQ(reply->curves(0).metric(), "train_loss");
}

TEST_F(CurvesTest, AReplyHasBounds) {
  for (uint64_t step = 1; step <= 10; ++step) Step(step, 1);
  v1::GetCurvesRequest request;
  request.add_job_ids("mine");
  request.add_metrics("train_loss");
  Curves small(&jobs_.book(), 1000, /*most_points=*/10);
  EXPECT_OK(small.Get(request));
  request.add_metrics("learning_rate");
  EXPECT_THAT(small.Get(request).status().message(), HasSubstr("more than 10 points: ask for fewer"));
  request.set_max_points(5);
  EXPECT_OK(small.Get(request));
}

TEST_F(CurvesTest, WhatCannotBeDrawnIsNamed) {
  Step(1, 1);
  v1::GetCurvesRequest request;
  EXPECT_THAT(curves_.Get(request).status().message(), HasSubstr("job_ids is empty"));
  request.add_job_ids("mine");
  request.add_metrics("train_lose");
  EXPECT_THAT(curves_.Get(request).status().message(),
              HasSubstr("no metric 'train_lose'; there are: gradient_norm, learning_rate, tokens_per_second"));
  request.clear_metrics();
  request.set_max_points(2);
  EXPECT_THAT(curves_.Get(request).status().message(), HasSubstr("max_points must be 3 to 10000, not 2"));
  request.set_max_points(0);
  request.add_job_ids("other");
  EXPECT_EQ(curves_.Get(request).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace millrace::coordinator
