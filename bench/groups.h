// The groups of rows; each measures what the report wants of it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "bench/report.h"
#include "kernels/compute.h"

namespace millrace::bench {

struct Machine {
  kernels::Isa isa;     // the best that may be used
  int threads = 1;      // of everything in one process
  std::string program;  // the millrace binary
};

absl::Status BenchCompute(const Machine& machine, Report* report);
absl::Status BenchOptimizer(const Machine& machine, Report* report);
absl::Status BenchTransport(const Machine& machine, Report* report);
absl::Status BenchBytes(const Machine& machine, Report* report);
absl::Status BenchDistribution(const Machine& machine, Report* report);
absl::Status BenchCoordinatorGrowth(const Machine& machine, Report* report);
absl::Status BenchShardGrowth(const Machine& machine, Report* report);
absl::Status BenchText(const Machine& machine, Report* report);
absl::Status BenchGeneration(const Machine& machine, Report* report);
absl::Status BenchServing(const Machine& machine, Report* report);

}  // namespace millrace::bench
