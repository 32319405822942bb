// What distribution costs: tokens a second of training in one process, without any network, and of a local cluster of
// 1 coordinator, 2 shards and 2 workers, on the same cores; and the most memory that its processes had resident.
//
//   distribution_bench MILLRACE [SECONDS]      MILLRACE: the binary; SECONDS of each measurement, default 30
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/local_cluster.h"
#include "client/coordinator_client.h"
#include "common/job_file.h"
#include "common/philox.h"
#include "common/status.h"
#include "kernels/compute.h"
#include "kernels/reduce.h"
#include "model/families/decoder.h"
#include "model/objectives/causal_lm.h"
#include "optim/optimizer.h"

namespace millrace {
namespace {

struct Setting {
  const char* name;
  int layers, hidden, heads, context, global_batch, microbatch;
};

constexpr Setting kSettings[] = {
    {"4 x 128, context 64, batch 12", 4, 128, 4, 64, 12, 6},
    {"6 x 384, context 256, batch 8", 6, 384, 6, 256, 8, 4},
};

constexpr uint32_t kVocab = 65;

std::string JobText(const Setting& setting, const std::string& text, const std::string& precision) {
  return absl::StrCat(
      "name: bench\ndata: {sources: [{path: ", text, "}], clean: {dedup: none}, split: {order: file}}\n",
      "tokenizer: {type: char}\nmodel: {family: gpt2, layers: ", setting.layers, ", hidden_size: ", setting.hidden,
      ", heads: ", setting.heads, ", context: ", setting.context, ", precision: ", precision, "}\n",
      "phases: [{name: pretrain, global_batch: ", setting.global_batch, ", microbatch: ", setting.microbatch,
      ", optimizer: {type: adamw}, evaluate: {every_steps: 1000000}, stop: {max_steps: 1000000}}]\n");
}

// Forward, backward, clipping and AdamW on `threads` threads: what a step computes and nothing else.
absl::StatusOr<double> OneProcess(const v1::JobSpec& job, int threads, double seconds) {
  const v1::PhaseSpec& phase = job.phases(0);
  const kernels::Compute compute(kernels::DetectIsa(), threads);
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Decoder> decoder, model::Decoder::Create(job.model(), kVocab));
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<optim::Optimizer> optimizer,
                            optim::CreateOptimizer(phase.optimizer()));
  const model::TensorList& tensors = decoder->tensors();
  MILLRACE_ASSIGN_OR_RETURN(model::Arena memory, model::Arena::Create(4 * (tensors.floats() + 16)));
  float* const weights = memory.Take(tensors.floats());
  float* const gradients = memory.Take(tensors.floats());
  float* const state = memory.Take(2 * tensors.floats());
  for (int i = 0; i < tensors.size(); ++i) {
    model::StartValues(tensors[i], i, 1, 0,
                       absl::MakeSpan(weights + tensors[i].offset, static_cast<size_t>(tensors[i].size)));
  }
  const int64_t columns = job.model().context() + 1, rows = phase.microbatch();
  MILLRACE_ASSIGN_OR_RETURN(model::CausalLm objective,
                            model::CausalLm::Create(decoder.get(), &compute, rows * (columns - 1), columns - 1,
                                                    /*for_training=*/true));
  std::vector<uint32_t> ids(static_cast<size_t>(rows * columns));
  const float scale = 1.0f / static_cast<float>(phase.global_batch() * job.model().context());
  uint64_t steps = 0, draws = 0;
  absl::Time begun;
  for (;; ++steps) {
    if (steps == 2) begun = absl::Now();  // the first ones warm up
    if (steps > 2 && absl::Now() - begun > absl::Seconds(seconds)) break;
    std::fill_n(gradients, tensors.floats(), 0.0f);
    for (uint32_t i = 0; i < phase.global_batch() / phase.microbatch(); ++i) {
      for (uint32_t& id : ids) id = Philox(1)(0, draws++)[0] % kVocab;
      MILLRACE_RETURN_IF_ERROR(objective
                                   .Gradients(weights, {ids.data(), rows, columns}, {}, scale, &model::IgnoreGroup,
                                              gradients, &model::IgnoreGroup)
                                   .status());
    }
    const double norm = std::sqrt(kernels::SumSquaresInF64(gradients, tensors.floats()));
    const auto clip = static_cast<float>(std::min(1.0, phase.optimizer().clip_norm() / (norm + 1e-6)));
    for (int64_t i = 0; i < tensors.floats(); ++i) gradients[i] *= clip;
    compute.ParallelFor(tensors.size(), 1, [&](int64_t first, int64_t last) {
      const kernels::Compute one(compute.isa(), 1);
      for (int64_t i = first; i < last; ++i) {
        const model::TensorSpec& tensor = tensors[static_cast<int>(i)];
        optim::Piece piece;
        piece.size = tensor.size;
        piece.decays = tensor.shape.size() > 1;
        optimizer->Update(one, piece, steps + 1, 1.0, gradients + tensor.offset, weights + tensor.offset,
                          state + 2 * tensor.offset);
      }
    });
  }
  const double tokens = static_cast<double>((steps - 2) * phase.global_batch() * job.model().context());
  return tokens / absl::ToDoubleSeconds(absl::Now() - begun);
}

// The most memory that a process had resident; 0 if it is not known.
double PeakMegabytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string word; status >> word;) {
    double kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes / 1024;
  }
  return 0;
}

struct Measured {
  double tokens_per_second = 0;
  double worker_megabytes = 0;
  double shard_megabytes = 0;
};

// The same job on a cluster: from the first step event to the last one within the time.
absl::StatusOr<Measured> WholeCluster(const v1::JobSpec& job, const std::string& program, const std::string& directory,
                                      int workers, double seconds) {
  cli::LocalClusterOptions options;
  options.program = program;
  options.directory = directory;
  options.shards = 2;
  options.workers = workers;
  options.say = [](absl::string_view text) { std::fprintf(stderr, "%s\n", std::string(text).c_str()); };
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<cli::LocalCluster> cluster,
                            cli::LocalCluster::Start(std::move(options)));
  cluster->StartMembers();
  client::CoordinatorClient coordinator(cluster->coordinator());
  v1::SubmitJobRequest request;
  *request.mutable_spec() = job;
  request.set_base_directory("/");
  MILLRACE_ASSIGN_OR_RETURN(const v1::Job submitted, coordinator.SubmitJob(request));
  v1::JobEvent first, last;
  MILLRACE_RETURN_IF_ERROR(coordinator.WatchJob(submitted.id(), 0, [&](const v1::JobEvent& event) {
    if (!event.has_step() || event.step().step() < 3) return true;
    if (!first.has_step()) first = event;
    last = event;
    return static_cast<double>(last.unix_ms() - first.unix_ms()) < 1000 * seconds;
  }));
  Measured measured;
  MILLRACE_ASSIGN_OR_RETURN(const cli::RunningCluster running, cli::FindRunningCluster(directory));
  for (const auto& process : running.processes) {
    double& peak = absl::StartsWith(process.name, "worker") ? measured.worker_megabytes : measured.shard_megabytes;
    if (process.name != "coordinator") peak = std::max(peak, PeakMegabytes(process.pid));
  }
  MILLRACE_RETURN_IF_ERROR(coordinator.CancelJob(submitted.id()).status());
  cluster->Stop();
  const double tokens = static_cast<double>(last.step().tokens() - first.step().tokens());
  measured.tokens_per_second = tokens * 1000 / static_cast<double>(last.unix_ms() - first.unix_ms());
  return measured;
}

absl::Status Run(const std::string& program, double seconds) {
  char pattern[] = "/tmp/millrace-bench-XXXXXX";
  if (mkdtemp(pattern) == nullptr) return absl::InternalError("no temporary folder");
  const std::string folder = pattern;
  struct Remove {
    const std::string& folder;
    ~Remove() { std::filesystem::remove_all(folder); }
  } remove{folder};
  const std::string text = folder + "/text.txt";
  {
    std::ofstream out(text);
    for (uint64_t i = 0; i < 1'000'000; ++i) out << static_cast<char>('!' + Philox(2)(0, i)[0] % kVocab);
  }
  const int threads = cli::Cores();
  std::printf("tokens a second, %d cores; cluster: 1 coordinator, 2 shards, 2 workers\n\n", threads);
  std::printf("%-32s  %-9s  %12s  %12s  %6s  %10s  %10s\n", "model", "precision", "one process", "cluster", "ratio",
              "worker MiB", "shard MiB");
  int run = 0;
  for (const Setting& setting : kSettings) {
    for (const char* precision : {"f32", "bf16"}) {
      MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, ParseJob(JobText(setting, text, precision), "bench.yaml", {}));
      MILLRACE_ASSIGN_OR_RETURN(const double one, OneProcess(job, threads, seconds));
      MILLRACE_ASSIGN_OR_RETURN(const Measured cluster,
                                WholeCluster(job, program, absl::StrCat(folder, "/", ++run), 2, seconds));
      std::printf("%-32s  %-9s  %12.0f  %12.0f  %6.2f  %10.0f  %10.0f\n", setting.name, precision, one,
                  cluster.tokens_per_second, cluster.tokens_per_second / one, cluster.worker_megabytes,
                  cluster.shard_megabytes);
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: distribution_bench MILLRACE [SECONDS]\n");
    return 2;
  }
  const absl::Status status = millrace::Run(argv[1], argc > 2 ? std::atof(argv[2]) : 30);
  if (status.ok()) return 0;
  std::fprintf(stderr, "distribution_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
