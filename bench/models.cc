#include "bench/models.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/job_file.h"
#include "common/philox.h"
#include "common/status.h"
#include "kernels/reduce.h"
#include "model/families/network.h"
#include "model/objectives/causal_lm.h"
#include "optim/optimizer.h"

namespace millrace::bench {

double Model::flop() const {
  const double width = hidden, of_layer = 12 * width * width + 13 * width;
  return 6 * (layers * of_layer + width * (vocab + 2)) + 12.0 * layers * width * context;
}

absl::string_view PrecisionName(kernels::Precision precision) {
  return precision == kernels::Precision::kBf16 ? "bf16" : "f32";
}

absl::Status WriteRandomText(const std::string& path, const Model& model, uint64_t size) {
  std::ofstream out(path);
  for (uint64_t i = 0; i < size; ++i) {
    out << static_cast<char>('!' + Philox(2)(0, i)[0] % static_cast<uint32_t>(model.vocab));
  }
  return out.flush() ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

absl::StatusOr<v1::JobSpec> JobOf(const Model& model, const std::string& path, kernels::Precision precision,
                                  int global_batch, int microbatch) {
  return ParseJob(
      absl::StrCat("name: bench\ndata: {sources: [{path: ", path, "}], clean: {dedup: none}, split: {order: file}}\n",
                   "tokenizer: {type: char}\nmodel: {family: gpt2, layers: ", model.layers,
                   ", hidden_size: ", model.hidden, ", heads: ", model.heads, ", context: ", model.context,
                   ", precision: ", PrecisionName(precision), "}\n",
                   "phases: [{name: pretrain, global_batch: ", global_batch, ", microbatch: ", microbatch,
                   ", optimizer: {type: adamw}, evaluate: {every_steps: 1000000}, stop: {max_steps: 1000000}}]\n"),
      "bench.yaml", {});
}

absl::StatusOr<double> TrainInOneProcess(const v1::JobSpec& job, uint32_t vocab, kernels::Isa isa, int threads,
                                         double seconds) {
  const v1::PhaseSpec& phase = job.phases(0);
  const kernels::Compute compute(isa, threads);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Network> network, model::CreateNetwork(job.model(), vocab));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<optim::Optimizer> optimizer,
                            optim::CreateOptimizer(phase.optimizer()));
  const model::TensorList& tensors = network->tensors();
  MILLRACE_ASSIGN_OR_RETURN(model::Arena memory, model::Arena::Create(4 * (tensors.floats() + 16)));
  float* const weights = memory.Take(tensors.floats());
  float* const gradients = memory.Take(tensors.floats());
  float* const state = memory.Take(2 * tensors.floats());
  model::StartWeights(tensors, 1, weights);
  const int64_t columns = job.model().context() + 1, rows = phase.microbatch();
  MILLRACE_ASSIGN_OR_RETURN(model::CausalLm objective,
                            model::CausalLm::Create(network.get(), &compute, rows * (columns - 1), columns - 1,
                                                    /*for_training=*/true));
  std::vector<uint32_t> ids(static_cast<size_t>(rows * columns));
  const float scale = 1.0f / static_cast<float>(phase.global_batch() * job.model().context());
  uint64_t steps = 0, draws = 0;
  absl::Time begun;
  for (;; ++steps) {
    if (steps == 2) begun = absl::Now();  // the first ones warm up
    if (steps > 2 && absl::Now() - begun > absl::Seconds(seconds)) break;
    compute.ParallelFor(tensors.floats(), 1 << 16,
                        [&](int64_t begin, int64_t end) { std::fill(gradients + begin, gradients + end, 0.0f); });
    for (uint32_t i = 0; i < phase.global_batch() / phase.microbatch(); ++i) {
      for (uint32_t& id : ids) id = Philox(1)(0, draws++)[0] % vocab;
      MILLRACE_RETURN_IF_ERROR(objective
                                   .Gradients(weights, {ids.data(), rows, columns}, {}, scale, &model::IgnoreGroup,
                                              gradients, &model::IgnoreGroup)
                                   .status());
    }
    std::vector<double> squares(static_cast<size_t>(tensors.size()));
    compute.ParallelFor(tensors.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const model::TensorSpec& tensor = tensors[static_cast<int>(i)];
        squares[static_cast<size_t>(i)] = kernels::SumSquaresInF64(gradients + tensor.offset, tensor.size);
      }
    });
    double sum = 0;
    for (const double square : squares) sum += square;
    const auto clip = static_cast<float>(std::min(1.0, phase.optimizer().clip_norm() / (std::sqrt(sum) + 1e-6)));
    compute.ParallelFor(tensors.size(), 1, [&](int64_t begin, int64_t end) {
      const kernels::Compute one(isa, 1);
      for (int64_t i = begin; i < end; ++i) {
        const model::TensorSpec& tensor = tensors[static_cast<int>(i)];
        optim::Piece piece;
        piece.size = tensor.size;
        piece.decays = tensor.shape.size() > 1;
        for (int64_t j = 0; j < tensor.size; ++j) gradients[tensor.offset + j] *= clip;
        optimizer->Update(one, piece, steps + 1, 1.0, gradients + tensor.offset, weights + tensor.offset,
                          state + 2 * tensor.offset);
      }
    });
  }
  const double tokens = static_cast<double>((steps - 2) * phase.global_batch() * job.model().context());
  return tokens / absl::ToDoubleSeconds(absl::Now() - begun);
}

}  // namespace millrace::bench
