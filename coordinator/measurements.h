// Names what steps and evaluations measure, for whoever draws it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace::coordinator {

// What a step or an evaluation measured, replacing what is in `measured`: "train_loss", "learning_rate",
// "gradient_norm" and "tokens_per_second", or "held_out_loss"; then statistics in the order of their names, behind
// "train/" or "held_out/". Nothing of other events.
void Measure(const v1::JobEvent& event, std::vector<std::pair<std::string, double>>* measured);

// The same name in TensorBoard, which draws together what begins alike: "train/loss", "train/learning_rate", ….
std::string TensorBoardTag(absl::string_view name);

}  // namespace millrace::coordinator
