// Sets what several models made of the same tasks side by side.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "evaluation/run_task.h"
#include "nlohmann/json.hpp"
#include "proto/millrace/v1/evaluation.pb.h"

namespace millrace::evaluation {

struct ModelResults {
  std::string name;               // as the user gave it
  std::vector<TaskResult> tasks;  // in the order of the tasks file
};

// Estimates of every metric, and the difference of every model and the first one, by pairs of examples. Numbers that
// cannot be told are null.
//   {"models": [name],
//    "tasks": [{"name", "type", "few_shot", "examples",
//               "metrics": {metric: {"results": [{"model", "value", "standard_error", "interval": [low, high]}],
//                                    "differences": [{"model", "against", "value", "standard_error", "interval",
//                                                     "better"?, "worse"?, "p_value"?}]}},
//               "notes": [{"model", "about", "examples"}]}]}
nlohmann::ordered_json MakeReport(const v1::TasksFile& tasks, absl::Span<const ModelResults> models);

// The same for people; ends with a newline.
std::string TableOf(const nlohmann::ordered_json& report);

// Makes FOLDER/report.json, and FOLDER/N/TASK.jsonl with the records of the model of number N, from 1. ALREADY_EXISTS
// if there is a report: see CheckNewReport.
absl::Status WriteReport(const std::string& folder, const nlohmann::ordered_json& report, const v1::TasksFile& tasks,
                         absl::Span<const ModelResults> models);
// Before anything is computed.
absl::Status CheckNewReport(const std::string& folder);

}  // namespace millrace::evaluation
