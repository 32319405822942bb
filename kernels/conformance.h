// Computes a fixed set of results with every kernel, for the digest by which processors and builds are compared.
#pragma once

#include "common/checksum.h"
#include "kernels/compute.h"

namespace millrace::kernels {

// Adds the bits of the results to `sum`: the same on every instruction set and number of threads. Some milliseconds.
void AddConformance(const Compute& compute, Sha256* sum);

}  // namespace millrace::kernels
