// How a shard bears many workers: a real one, in a process of its own, takes in the gradients of a step of 64 units,
// from one worker after another or from many at once, each on a connection of its own.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/groups.h"
#include "bench/models.h"
#include "bench/processes.h"
#include "blocks/block_table.h"
#include "blocks/fixed_point.h"
#include "client/shard_group.h"
#include "common/status.h"

namespace millrace::bench {
namespace {

constexpr int kCounts[] = {1, 4, 16, 64};
constexpr uint32_t kUnits = 64;  // a step
constexpr int kRounds = 5;
constexpr double kGoal = 0.9;

v1::TensorTable Table() {
  v1::TensorTable table;
  v1::Tensor& tensor = *table.add_tensors();
  tensor.set_name("weight");
  tensor.add_shape(2048);
  tensor.add_shape(1024);
  tensor.set_trainable(true);
  tensor.set_role(v1::Tensor::MATRIX);
  return table;
}

// A block's gradient as a worker sends it.
struct Coded {
  blocks::Coding coding;
  std::string values;
};

absl::StatusOr<std::vector<Coded>> Encode(client::ShardGroup* group, const blocks::BlockTable& blocks,
                                          uint64_t version) {
  std::vector<Coded> all(blocks.blocks().size());
  MILLRACE_RETURN_IF_ERROR(
      group->Pull(version, [&](uint32_t block, absl::string_view, const blocks::Coding& coding) -> absl::Status {
        all[block].coding = coding;
        const std::vector<float> gradient(static_cast<size_t>(blocks.blocks()[block].size), 1e-6f);
        return blocks::Encode(gradient, coding, &all[block].values).status();
      }));
  return all;
}

// Bytes a second of a step's gradients from `pushers` workers.
absl::StatusOr<double> Step(const std::vector<std::unique_ptr<client::ShardGroup>>& pushers,
                            const blocks::BlockTable& blocks, uint64_t version) {
  MILLRACE_ASSIGN_OR_RETURN(const std::vector<Coded> gradient, Encode(pushers[0].get(), blocks, version));
  double bytes = 0;
  for (const Coded& coded : gradient) bytes += static_cast<double>(kUnits * coded.values.size());
  std::atomic<uint32_t> next_unit = 0;
  absl::Mutex mutex;
  absl::Status status;
  const absl::Time begun = absl::Now();
  std::vector<std::thread> threads;
  for (const auto& pusher : pushers) {
    threads.emplace_back([&] {
      for (uint32_t unit; (unit = next_unit++) < kUnits;) {
        const std::unique_ptr<client::GradientPush> push = pusher->Push(version, unit);
        absl::Status pushed;
        for (uint32_t block = 0; block < gradient.size() && pushed.ok(); ++block) {
          pushed = push->Add(block, gradient[block].coding, gradient[block].values, 0);
        }
        if (pushed.ok()) pushed = push->Finish();
        absl::MutexLock lock(&mutex);
        if (status.ok()) status = pushed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begun);
  MILLRACE_RETURN_IF_ERROR(status);
  v1::NormsRequest norms;
  norms.set_version(version);
  MILLRACE_RETURN_IF_ERROR(pushers[0]->Norms(norms).status());
  v1::CommitRequest commit;
  commit.set_version(version);
  commit.set_clip_factor(1);
  MILLRACE_RETURN_IF_ERROR(pushers[0]->Commit(commit).status());
  return bytes / seconds;
}

}  // namespace

absl::Status BenchShardGrowth(const Machine& machine, Report* report) {
  const TemporaryFolder folder;
  MILLRACE_ASSIGN_OR_RETURN(const Role coordinator, StartRole({machine.program, "coordinator", "--dir", folder.path()},
                                                              "coordinator", folder.path(), true));
  MILLRACE_ASSIGN_OR_RETURN(const Role shard, StartRole({machine.program, "ps", "--coordinator", coordinator.address,
                                                         "--threads", absl::StrCat(machine.threads)},
                                                        "shard", folder.path(), true));
  MILLRACE_ASSIGN_OR_RETURN(const blocks::BlockTable blocks, blocks::BlockTable::Create(Table()));
  MILLRACE_ASSIGN_OR_RETURN(const v1::JobSpec job, JobOf(kModels[0], "none", kernels::Precision::kF32, 1, 1));
  const v1::OptimizerSpec& optimizer = job.phases(0).optimizer();
  std::vector<std::vector<std::unique_ptr<client::ShardGroup>>> pushers;
  for (const int count : kCounts) {
    pushers.emplace_back();
    for (int i = 0; i < count; ++i) {
      // A connection of its own, as a worker has.
      pushers.back().push_back(std::make_unique<client::ShardGroup>(1, std::vector<std::string>{shard.address}));
      pushers.back().back()->Place(&blocks, optimizer);
    }
  }
  v1::ConfigureRequest configure;
  *configure.mutable_table() = Table();
  *configure.mutable_optimizer() = optimizer;
  configure.set_max_steps(1000);
  configure.set_units_per_step(kUnits);
  MILLRACE_RETURN_IF_ERROR(pushers[0][0]->Configure(configure));
  MILLRACE_RETURN_IF_ERROR(pushers[0][0]->Load(0, [&](uint32_t block, v1::LoadRequest* request) {
    request->set_weights(std::string(static_cast<size_t>(blocks.blocks()[block].size) * sizeof(float), '\0'));
    return absl::OkStatus();
  }));
  uint64_t version = 0;
  std::vector<std::vector<double>> rates(pushers.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < pushers.size(); ++i) {
      MILLRACE_ASSIGN_OR_RETURN(const double rate, Step(pushers[i], blocks, version++));
      rates[i].push_back(rate / 1e9);
    }
  }
  for (size_t i = 0; i < pushers.size(); ++i) {
    const std::string name = absl::StrCat("growth/shard/", kCounts[i], kCounts[i] == 1 ? "-pusher" : "-pushers");
    report->Add({name, Median(rates[i]), "GB/s", i == 0 ? 0 : Median(rates[0]), i == 0 ? 0 : kGoal});
  }
  report->Add({absl::StrCat("growth/shard/", kCounts[pushers.size() - 1], "-pushers/memory"),
               PeakMegabytes(shard.process->pid()), "MiB"});
  return absl::OkStatus();
}

}  // namespace millrace::bench
