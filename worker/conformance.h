// Says in one digest what this build computes on this processor, so that a cluster takes in only those that agree.
#pragma once

#include <string>

#include "kernels/compute.h"

namespace millrace::worker {

// SHA-256, in hex, over the outputs of every kernel and of the loss and gradients of a tiny model of each family in f32
// and bf16. Equal for every instruction set and number of threads, or something is broken. Takes a fraction of a
// second.
std::string ConformanceDigest(const kernels::Compute& compute);

}  // namespace millrace::worker
