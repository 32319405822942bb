// Tokens a second of generation against reading the weights once a token.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "common/status.h"
#include "kernels/reduce.h"
#include "model/arena.h"
#include "model/families/network.h"
#include "model/layers/linear.h"

namespace millrace::bench {
namespace {

constexpr int64_t kTokens = 128;
constexpr double kGoal = 0.5;

}  // namespace

absl::Status BenchGeneration(const Machine& machine, Report* report) {
  const kernels::Compute compute(machine.isa, machine.threads);
  const Model& model = kModels[1];
  const auto vocab = static_cast<uint32_t>(model.vocab);
  for (const kernels::Precision precision : {kernels::Precision::kF32, kernels::Precision::kBf16}) {
    const std::string name = absl::StrCat("generation/", model.name, "/", PrecisionName(precision));
    if (!report->Wants(name)) continue;
    MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(model, "none", precision, 1, 1));
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Network> network, model::CreateNetwork(job.model(), vocab));
    const model::TensorList& tensors = network->tensors();
    MILLRACE_ASSIGN_OR_RETURN(model::Arena memory, model::Arena::Create(tensors.floats()));
    float* const weights = memory.Take(tensors.floats());
    model::StartWeights(tensors, 1, weights);
    MILLRACE_ASSIGN_OR_RETURN(const model::Network::OwnedCache cache, network->NewCache());
    const model::Linear linear = {network->hidden_size(), model.vocab, false, precision};
    const float* const embedding = weights + tensors[network->output_embedding()].offset;
    std::vector<float> logits(vocab);
    const auto generate = [&] {
      network->Begin(compute, weights, cache.get()).IgnoreError();
      for (uint32_t id = 0; id < kTokens; ++id) {
        const uint32_t token = id % vocab;
        const float* const outputs = network->Extend(compute, weights, {&token, 1}, cache.get());
        model::LinearForward(compute, linear, outputs, 1, embedding, nullptr, logits.data(), linear.outputs);
      }
    };
    // Reading the weights, wherever they lie: in memory or in the outer cache.
    std::vector<float> sums(static_cast<size_t>(tensors.floats() >> 12) + 1);
    const auto read = [&] {
      compute.ParallelFor(tensors.floats(), 1 << 14, [&](int64_t begin, int64_t end) {
        sums[static_cast<size_t>(begin >> 12)] = kernels::SumSquares(weights + begin, end - begin);
      });
    };
    const std::vector<double> seconds = SecondsOfEach({generate, read}, 0.1);
    report->Add({name, kTokens / seconds[0], "tokens/s", 1 / seconds[1], kGoal});
  }
  return absl::OkStatus();
}

}  // namespace millrace::bench
