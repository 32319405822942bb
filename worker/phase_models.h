// Says which models a phase works with, and how the shards see their tensors.
//
// The model that is trained comes first, its tensors named as its family names them. A frozen copy that it is held to
// follows, its names with a prefix. Groups go on from one model to the next.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/families/decoder.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace millrace::worker {

inline constexpr char kReference[] = "reference/";

// Whether a phase's objective compares with a reference model.
bool HasReference(const v1::PhaseSpec& phase);

// INVALID_ARGUMENT for a pattern of phase.trainable that matches no tensor, and if nothing is left to train.
absl::StatusOr<v1::TensorTable> TableOf(const model::Decoder& decoder, const v1::PhaseSpec& phase);

std::vector<v1::ModelPart> PartsOf(const v1::PhaseSpec& phase);

}  // namespace millrace::worker
