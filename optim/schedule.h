// Says how the learning rate goes over the steps of a phase.
#pragma once

#include <cstdint>

#include "proto/millrace/v1/job.pb.h"

namespace millrace::optim {

// The factor on every learning rate at `step` = 1, 2, …: after a linear warm-up over warmup_steps it has the schedule's
// shape from 1 at its start to min_lr_ratio behind its end, which is decay_steps or, absent that, `max_steps`:
//   constant   1
//   cosine     half a period (Loshchilov and Hutter 2017, without restarts)
//   linear     a line
//   wsd        1, then a line over the last decay_fraction of the steps (warm-up, stable, decay; Hu et al. 2024)
// The same bits on every processor.
double ScheduleFactor(const v1::OptimizerSpec& spec, uint64_t step, uint64_t max_steps);

}  // namespace millrace::optim
