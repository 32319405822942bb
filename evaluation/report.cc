#include "evaluation/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/status.h"
#include "text/unicode.h"

namespace millrace::evaluation {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kReportFile[] = "report.json";

Json NumberOrNull(double number) { return std::isfinite(number) ? Json(number) : Json(nullptr); }

Json ToJson(const Estimate& estimate) {
  return {{"value", NumberOrNull(estimate.value)},
          {"standard_error", NumberOrNull(estimate.standard_error)},
          {"interval", {NumberOrNull(estimate.low), NumberOrNull(estimate.high)}}};
}

Json MetricJson(absl::Span<const ModelResults> models, size_t task, size_t metric, uint64_t seed) {
  Json results = Json::array(), differences = Json::array();
  const Metric& first = models[0].tasks[task].metrics[metric];
  for (const ModelResults& model : models) {
    const Metric& of = model.tasks[task].metrics[metric];
    Json result = {{"model", model.name}};
    result.update(ToJson(EstimateOf(of.measure, of.terms, seed)));
    results.push_back(std::move(result));
    if (&model == models.data()) continue;
    const Difference about = DifferenceOf(of.measure, first.terms, of.terms, seed);
    Json difference = {{"model", model.name}, {"against", models[0].name}};
    difference.update(ToJson(about.estimate));
    if (of.measure == Measure::kShare) {
      difference["better"] = about.better;
      difference["worse"] = about.worse;
      difference["p_value"] = about.p_value;
    }
    differences.push_back(std::move(difference));
  }
  return {{"results", std::move(results)}, {"differences", std::move(differences)}};
}

std::string Shown(const Json& number, bool sign = false) {
  if (number.is_null()) return "?";
  return sign ? absl::StrFormat("%+.4f", number.get<double>()) : absl::StrFormat("%.4f", number.get<double>());
}

std::string Cell(const Json& estimate, bool difference) {
  const Json& interval = estimate["interval"];
  std::string cell = absl::StrCat(Shown(estimate["value"], difference), " ± ", Shown(estimate["standard_error"]), " [",
                                  Shown(interval[0], difference), ", ", Shown(interval[1], difference), "]");
  if (estimate.contains("p_value")) absl::StrAppend(&cell, " p ", Shown(estimate["p_value"]));
  return cell;
}

}  // namespace

Json MakeReport(const v1::TasksFile& tasks, absl::Span<const ModelResults> models) {
  Json report = {{"models", Json::array()}, {"tasks", Json::array()}};
  for (const ModelResults& model : models) report["models"].push_back(model.name);
  for (int i = 0; i < tasks.tasks_size(); ++i) {
    const v1::TaskSpec& spec = tasks.tasks(i);
    const auto at = static_cast<size_t>(i);
    const TaskResult& first = models[0].tasks[at];
    Json task = {{"name", spec.name()},         {"type", spec.type()},
                 {"few_shot", spec.few_shot()}, {"examples", first.records.size()},
                 {"metrics", Json::object()},   {"notes", Json::array()}};
    for (size_t metric = 0; metric < first.metrics.size(); ++metric) {
      task["metrics"][first.metrics[metric].name] = MetricJson(models, at, metric, spec.seed());
    }
    for (const ModelResults& model : models) {
      for (const auto& [about, examples] : model.tasks[at].notes) {
        task["notes"].push_back({{"model", model.name}, {"about", about}, {"examples", examples}});
      }
    }
    report["tasks"].push_back(std::move(task));
  }
  return report;
}

std::string TableOf(const Json& report) {
  const size_t models = report["models"].size();
  std::string text;
  for (size_t i = 0; i < models && models > 1; ++i) {
    absl::StrAppend(&text, "[", i + 1, "] ", report["models"][i].get<std::string>(), i + 1 == models ? "\n\n" : "\n");
  }
  std::vector<std::vector<std::string>> rows = {{"task", "metric", "examples"}};
  for (size_t i = 0; i < models; ++i) {
    rows[0].push_back(models > 1 ? absl::StrCat("[", i + 1, "]") : report["models"][0].get<std::string>());
  }
  for (size_t i = 1; i < models; ++i) rows[0].push_back(absl::StrCat("[", i + 1, "] - [1]"));
  for (const Json& task : report["tasks"]) {
    for (const auto& [metric, of] : task["metrics"].items()) {
      std::vector<std::string> row = {task["name"], metric, absl::StrCat(task["examples"].get<uint64_t>())};
      for (const Json& result : of["results"]) row.push_back(Cell(result, false));
      for (const Json& difference : of["differences"]) row.push_back(Cell(difference, true));
      rows.push_back(std::move(row));
    }
  }
  std::vector<size_t> widths(rows[0].size());
  for (const std::vector<std::string>& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max<size_t>(widths[i], text::CountCharacters(row[i]));
    }
  }
  for (const std::vector<std::string>& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string fill(widths[i] - text::CountCharacters(row[i]), ' ');
      // Numbers of examples end below each other; the last column is not filled up.
      absl::StrAppend(&text, i == 2 ? fill : "", row[i], i == 2 || i + 1 == row.size() ? "" : fill,
                      i + 1 == row.size() ? "\n" : "  ");
    }
  }
  absl::StrAppend(&text, "\nvalue ± standard error [95 % confidence interval]",
                  models > 1 ? "; differences by pairs of examples, p: McNemar's test" : "", "\n");
  for (const Json& task : report["tasks"]) {
    for (const Json& note : task["notes"]) {
      absl::StrAppend(&text, task["name"].get<std::string>(), ": ", note["about"].get<std::string>(), ": ",
                      note["examples"].get<uint64_t>(), " of ", task["examples"].get<uint64_t>(),
                      models > 1 ? absl::StrCat(", ", note["model"].get<std::string>()) : "", "\n");
    }
  }
  return text;
}

absl::Status CheckNewReport(const std::string& folder) {
  std::error_code error;
  const std::string path = absl::StrCat(folder, "/", kReportFile);
  if (!std::filesystem::exists(path, error)) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(path, " is there already; name another folder"));
}

absl::Status WriteReport(const std::string& folder, const Json& report, const v1::TasksFile& tasks,
                         absl::Span<const ModelResults> models) {
  MILLRACE_RETURN_IF_ERROR(CheckNewReport(folder));
  for (size_t model = 0; model < models.size(); ++model) {
    const std::string of_model = absl::StrCat(folder, "/", model + 1);
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(of_model));
    for (int task = 0; task < tasks.tasks_size(); ++task) {
      std::string lines;
      for (const Json& record : models[model].tasks[static_cast<size_t>(task)].records) {
        absl::StrAppend(&lines, record.dump(), "\n");
      }
      MILLRACE_RETURN_IF_ERROR(
          WriteFileAtomically(absl::StrCat(of_model, "/", tasks.tasks(task).name(), ".jsonl"), lines));
    }
  }
  // Last: where it is, everything is.
  return WriteFileAtomically(absl::StrCat(folder, "/", kReportFile), absl::StrCat(report.dump(2), "\n"));
}

}  // namespace millrace::evaluation
