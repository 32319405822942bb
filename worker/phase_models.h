// Says which models a phase works with, and how the shards see their tensors.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/families/decoder.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::worker {

// INVALID_ARGUMENT for a pattern of phase.trainable that matches no tensor, and if nothing is left to train.
absl::StatusOr<v1::TensorTable> TableOf(const model::Decoder& decoder, const v1::PhaseSpec& phase);

std::vector<v1::ModelPart> PartsOf();

}  // namespace millrace::worker
