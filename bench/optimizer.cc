// AdamW against the memory's bandwidth.
#include "optim/optimizer.h"

#include <memory>
#include <string>
#include <vector>

#include "bench/groups.h"
#include "bench/models.h"
#include "blocks/block_table.h"
#include "common/job_file.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/arena.h"

namespace millrace::bench {
namespace {

constexpr int64_t kParameters = 16 << 20;  // larger than any cache
constexpr int64_t kPiece = 1 << 16;        // floats of a block
constexpr double kGoal = 0.8;

}  // namespace

absl::Status BenchOptimizer(const Machine& machine, Report* report) {
  const kernels::Compute compute(machine.isa, machine.threads);
  const kernels::Compute one(machine.isa, 1);
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(kModels[0], "none", kernels::Precision::kF32, 1, 1));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<optim::Optimizer> optimizer,
                            optim::CreateOptimizer(job.phases(0).optimizer()));
  MILLRACE_ASSIGN_OR_RETURN(model::Arena memory, model::Arena::Create(4 * kParameters));
  float* const gradients = memory.Take(kParameters);
  float* const weights = memory.Take(kParameters);
  float* const state = memory.Take(2 * kParameters);
  compute.ParallelFor(kParameters, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      gradients[i] = weights[i] = UniformFloat(Philox(1)(0, static_cast<uint64_t>(i))[0]) - 0.5f;
    }
  });
  const auto adamw = [&] {
    compute.ParallelFor(kParameters / kPiece, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        optim::Piece piece;
        piece.size = kPiece;
        piece.decays = true;
        optimizer->Update(one, piece, 3, 1.0, gradients + i * kPiece, weights + i * kPiece, state + 2 * i * kPiece);
      }
    });
  };
  // STREAM's (McCalpin 1995): a = b + s c.
  const auto triad = [&] {
    compute.ParallelFor(kParameters, kPiece, [&](int64_t begin, int64_t end) {
      float* const a = state;
      for (int64_t i = begin; i < end; ++i) a[i] = weights[i] + 0.25f * gradients[i];
    });
  };
  const std::vector<double> seconds = SecondsOfEach({adamw, triad}, 0.1);
  const auto rate = [](double bytes, double taken) { return bytes * static_cast<double>(kParameters) / taken / 1e9; };
  // Reads gradient, weight and both moments, writes all but the gradient.
  report->Add({"optimizer/adamw", rate(28, seconds[0]), "GB/s", rate(12, seconds[1]), kGoal});
  return absl::OkStatus();
}

}  // namespace millrace::bench
