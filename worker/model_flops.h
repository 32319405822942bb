// Counts the arithmetic that a model's definition asks for, by which utilisation is judged.
#pragma once

#include "proto/millrace/v1/coordinator.pb.h"
#include "worker/phase_models.h"

namespace millrace::worker {

// Floating-point operations of the model that is trained, over the rows of tokens of a unit that trains or evaluates:
//   forward    2 · (elements of the matrices, the output embedding included) + 4 · layers · hidden_size · columns
//   backward   twice that, less 2 a matrix element that is not trained
// a position. The second term is attention's, as if no position were masked. What is looked up, norms, other models,
// answers to prompts and what learns from these are not in it.
double ModelFlops(const PhaseModel& model, const v1::TensorTable& table, const v1::WorkUnit& unit);

}  // namespace millrace::worker
