#include "evaluation/report.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::evaluation {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

v1::TasksFile Tasks() {
  v1::TasksFile tasks;
  for (const char* name : {"weather", "text"}) {
    v1::TaskSpec& task = *tasks.add_tasks();
    task.set_name(name);
    task.set_type(name[0] == 'w' ? "choice" : "perplexity");
    task.set_few_shot(name[0] == 'w' ? 2 : 0);
    task.set_seed(1);
  }
  return tasks;
}

ModelResults Model(const std::string& name, const std::vector<double>& right, double bits) {
  TaskResult weather;
  Metric acc = {"acc", Measure::kShare, {}};
  for (size_t i = 0; i < right.size(); ++i) {
    acc.terms.push_back({right[i], 1});
    weather.records.push_back({{"example", "w.jsonl:" + std::to_string(i + 1)}});
  }
  weather.metrics = {acc};
  weather.notes = {{"ties in acc", 2}};
  TaskResult text;
  text.metrics = {{"bits_per_byte", Measure::kBitsPerWeight, {{-bits * 0.6931471805599453, 1}}}};
  text.records = {{{"example", "t.jsonl:1"}}};
  return {name, {weather, text}};
}

TEST(Report, OneModelIsATableOfItsOwn) {
  const Json report = MakeReport(Tasks(), {Model("runs/a", {1, 0, 1, 1, 0, 1, 1, 1}, 2)});
  EXPECT_EQ(TableOf(report),
            "task     metric         examples  runs/a\n"
            "weather  acc                   8  0.7500 ± 0.1637 [0.4093, 0.9285]\n"
            "text     bits_per_byte         1  2.0000 ± ? [?, ?]\n"
            "\n"
            "value ± standard error [95 % confidence interval]\n"
            "weather: ties in acc: 2 of 8\n");
  const Json& acc = report["tasks"][0]["metrics"]["acc"];
  EXPECT_EQ(acc["results"][0]["value"], 0.75);
  EXPECT_TRUE(acc["differences"].empty());
  EXPECT_EQ(report["tasks"][0]["few_shot"], 2);
  EXPECT_TRUE(report["tasks"][1]["metrics"]["bits_per_byte"]["results"][0]["standard_error"].is_null());
}

TEST(Report, SeveralModelsAreComparedWithTheFirst) {
  const Json report =
      MakeReport(Tasks(), {Model("runs/a", {1, 0, 1, 0, 0, 1}, 2), Model("runs/b", {1, 1, 0, 1, 1, 1}, 1.5)});
  EXPECT_EQ(TableOf(report),
            "[1] runs/a\n"
            "[2] runs/b\n"
            "\n"
            "task     metric         examples  [1]                               [2]                               "
            "[2] - [1]\n"
            "weather  acc                   6  0.5000 ± 0.2236 [0.1876, 0.8124]  0.8333 ± 0.1667 [0.4365, 0.9699]  "
            "+0.3333 ± 0.3333 [-0.3200, +0.9867] p 0.6250\n"
            "text     bits_per_byte         1  2.0000 ± ? [?, ?]                 1.5000 ± ? [?, ?]                 "
            "-0.5000 ± ? [?, ?]\n"
            "\n"
            "value ± standard error [95 % confidence interval]; differences by pairs of examples, p: McNemar's test\n"
            "weather: ties in acc: 2 of 6, runs/a\n"
            "weather: ties in acc: 2 of 6, runs/b\n");
  const Json& difference = report["tasks"][0]["metrics"]["acc"]["differences"][0];
  EXPECT_EQ(difference["model"], "runs/b");
  EXPECT_EQ(difference["against"], "runs/a");
  EXPECT_EQ(difference["better"], 3);
  EXPECT_EQ(difference["worse"], 1);
  EXPECT_FALSE(report["tasks"][1]["metrics"]["bits_per_byte"]["differences"][0].contains("p_value"));
}

TEST(Report, RecordsAreWrittenOnce) {
  const text::TemporaryFolder folder;
  const std::vector<ModelResults> models = {Model("runs/a", {1, 0}, 2), Model("runs/b", {1, 1}, 2)};
  const Json report = MakeReport(Tasks(), models);
  const std::string out = folder / "new/report";
  EXPECT_OK(CheckNewReport(out));
  ASSERT_OK(WriteReport(out, report, Tasks(), models));
  EXPECT_EQ(folder.Read("new/report/2/weather.jsonl"), "{\"example\":\"w.jsonl:1\"}\n{\"example\":\"w.jsonl:2\"}\n");
  EXPECT_EQ(folder.Read("new/report/1/text.jsonl"), "{\"example\":\"t.jsonl:1\"}\n");
  EXPECT_EQ(Json::parse(folder.Read("new/report/report.json")), report);
  EXPECT_THAT(std::string(CheckNewReport(out).message()), HasSubstr("report.json is there already"));
  EXPECT_EQ(WriteReport(out, report, Tasks(), models).code(), absl::StatusCode::kAlreadyExists);
}

}  // namespace
}  // namespace millrace::evaluation
