// Measures how fast products can be here, by which utilisation is judged.
#pragma once

#include "absl/time/time.h"
#include "kernels/compute.h"
#include "kernels/product.h"

namespace millrace::worker {

// Floating-point operations a second of the fastest of several large products, on all threads of `compute`: what
// bench/ compares training steps with. A few are multiplied at least, and more for `patience`. Seconds are those of
// processors, and the fastest counts: what else runs on the machine, as other workers that start, takes time away, but
// hardly makes a processor slower.
double PeakFlops(const kernels::Compute& compute, kernels::Precision precision,
                 absl::Duration patience = absl::Milliseconds(40));

}  // namespace millrace::worker
