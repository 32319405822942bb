#include "coordinator/measurements.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace millrace::coordinator {
namespace {

void AddStatistics(absl::string_view prefix, const google::protobuf::Map<std::string, double>& statistics,
                   std::vector<std::pair<std::string, double>>* measured) {
  const auto first = static_cast<std::ptrdiff_t>(measured->size());
  for (const auto& [name, value] : statistics) measured->emplace_back(absl::StrCat(prefix, name), value);
  std::sort(measured->begin() + first, measured->end());
}

}  // namespace

void Measure(const v1::JobEvent& event, std::vector<std::pair<std::string, double>>* measured) {
  measured->clear();
  if (event.has_step()) {
    const v1::StepEvent& step = event.step();
    measured->emplace_back("train_loss", step.loss());
    measured->emplace_back("learning_rate", step.learning_rate());
    measured->emplace_back("gradient_norm", step.gradient_norm());
    measured->emplace_back("tokens_per_second", step.tokens_per_second());
    AddStatistics("train/", step.statistics(), measured);
  } else if (event.has_evaluation()) {
    measured->emplace_back("held_out_loss", event.evaluation().loss());
    AddStatistics("held_out/", event.evaluation().statistics(), measured);
  }
}

std::string TensorBoardTag(absl::string_view name) {
  if (name == "held_out_loss") return "held_out/loss";
  if (name == "train_loss") return "train/loss";
  return absl::StrContains(name, '/') ? std::string(name) : absl::StrCat("train/", name);
}

}  // namespace millrace::coordinator
